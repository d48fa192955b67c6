"""The base is found beneath every wrapper, and only where it is not ambiguous."""

import functools
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from label_guard import LabelGuard
from label_guard.base import find_base
from tiny_guarded import StrictLM, make_model


class KwargsWrapper(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **kwargs: Any) -> Any:
        return self.model(**kwargs)


class NamingWrapper(KwargsWrapper):
    """As the community's trainers write it: it names labels and passes everything on."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Any = None) -> Any:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, labels=labels)


class WithProjection(NamingWrapper):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.projection = nn.Linear(3, 2)


class Mean(nn.Module):
    """A base whose part happens to be called ``model``."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(3, 2)

    def forward(self, speech: Tensor) -> Tensor:
        return self.model(speech)


class TwoModels(nn.Module):
    def __init__(self, model: nn.Module, module: nn.Module) -> None:
        super().__init__()
        self.model, self.module = model, module

    def forward(self, **kwargs: Any) -> Any:
        return self.model(**kwargs)


def lora(model: nn.Module, **options: Any) -> nn.Module:
    return get_peft_model(model, LoraConfig(target_modules=["c_attn"], **options))


WRAPPERS = {
    "bare": lambda base: base,
    "peft, CAUSAL_LM": lambda base: lora(base, task_type="CAUSAL_LM"),
    "peft, no task": lora,
    "kwargs": KwargsWrapper,
    "naming": NamingWrapper,
    "kwargs in peft": lambda base: KwargsWrapper(lora(base)),
    "twice": lambda base: KwargsWrapper(NamingWrapper(base)),
    "compiled": lambda base: torch.compile(base, backend="eager"),
    "data parallel": lambda base: nn.DataParallel(base),
    "compiled kwargs": lambda base: torch.compile(KwargsWrapper(base), backend="eager"),
}


@pytest.mark.parametrize("kind", [StrictLM, GPT2LMHeadModel])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_base_is_found_beneath(wrapper: str, kind: type[GPT2LMHeadModel]) -> None:
    base = make_model(kind)
    assert find_base(WRAPPERS[wrapper](base)) is base


def test_a_model_with_parameters_of_its_own_is_the_base() -> None:
    model = WithProjection(make_model())
    assert find_base(model) is model


def test_a_part_that_is_called_model_is_not_a_base() -> None:
    model = Mean()
    assert find_base(model) is model


def test_where_two_models_are_held_the_user_names_one() -> None:
    model = TwoModels(make_model(), make_model())
    with pytest.raises(ValueError, match="name that: LabelGuard\\(model, base="):
        LabelGuard(model)
    assert LabelGuard(model, base=model.model).base is model.model


def test_the_base_is_the_same_when_it_is_guarded() -> None:
    model = NamingWrapper(make_model())
    guard = LabelGuard(model)
    assert find_base(model) is guard.base is model.model
    assert guard.contract == LabelGuard(model).contract


def test_a_forward_behind_a_decorator_is_read_through() -> None:
    class Decorated(Mean):
        @functools.wraps(Mean.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    assert LabelGuard(Decorated()).contract.inputs == {"speech"}
