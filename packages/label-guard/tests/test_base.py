"""The base model is found beneath every wrapper; where two models could be meant, the user must name one."""

import functools
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from label_guard import LabelGuard
from label_guard.base import find_base
from tiny_guarded import KwargsWrapper, StrictLM, make_model


class NamingWrapper(KwargsWrapper):
    """A wrapper that names labels and passes everything on, as in many published trainers."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Any = None) -> Any:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, labels=labels)


class WithProjection(NamingWrapper):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.projection = nn.Linear(3, 2)


class Mean(nn.Module):
    """A base model with a part that is called ``model``."""

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
def test_the_base_model_is_found_beneath_a_wrapper(wrapper: str, kind: type[GPT2LMHeadModel]) -> None:
    base = make_model(kind)
    assert find_base(WRAPPERS[wrapper](base)) is base


def test_a_wrapper_that_has_parameters_is_itself_the_base_model() -> None:
    model = WithProjection(make_model())
    assert find_base(model) is model


def test_a_part_called_model_is_not_the_base_model() -> None:
    model = Mean()
    assert find_base(model) is model


def test_a_wrapper_of_two_models_is_an_error_until_the_user_names_one() -> None:
    model = TwoModels(make_model(), make_model())
    with pytest.raises(ValueError, match="name the model: LabelGuard\\(model, base="):
        LabelGuard(model)
    assert LabelGuard(model, base=model.model).base is model.model


def test_a_guarded_model_has_the_same_base_and_contract() -> None:
    model = NamingWrapper(make_model())
    guard = LabelGuard(model)
    assert find_base(model) is guard.base is model.model
    assert guard.contract == LabelGuard(model).contract


def test_the_signature_of_a_decorated_forward_is_read() -> None:
    class Decorated(Mean):
        @functools.wraps(Mean.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    assert LabelGuard(Decorated()).contract.inputs == {"speech"}
