"""The base model is found beneath every wrapper, and every module that a label can reach is watched."""

import functools
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from label_guard import LabelGuard
from label_guard.boundaries import find_base
from tiny_guarded import HIDDEN, KwargsWrapper, RemoteCausalLM, StrictLM, make_model

IDS = torch.arange(5).unsqueeze(0)


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


def watched(guard: LabelGuard) -> list[str]:
    """Return the classes of the modules whose forward is guarded."""
    return [type(module).__name__ for module in guard.boundaries]


WRAPPERS = {
    "bare": lambda base: base,
    "peft, CAUSAL_LM": lambda base: lora(base, task_type="CAUSAL_LM"),
    "peft, no task": lora,
    "kwargs": KwargsWrapper,
    "kwargs in peft": lambda base: KwargsWrapper(lora(base)),
    "twice": lambda base: KwargsWrapper(KwargsWrapper(base)),
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


def test_a_wrapper_that_names_labels_is_itself_the_base_model() -> None:
    """It may compute the loss itself. What it passes on is watched too."""
    model = NamingWrapper(make_model())
    guard = LabelGuard(model)
    assert guard.base is model
    assert "labels" in guard.contract.inputs
    assert watched(guard) == ["NamingWrapper", "StrictLM"]


def test_a_wrapper_of_two_models_takes_everything_and_both_models_are_watched() -> None:
    model = TwoModels(make_model(), make_model())
    guard = LabelGuard(model)
    model(input_ids=IDS, labels=IDS)
    assert "labels" in guard.pop_targets()
    with pytest.raises(ValueError, match="name the model: LabelGuard\\(model, base="):
        _ = guard.contract
    assert LabelGuard(model, base=model.model).base is model.model


def test_a_guarded_model_has_the_same_base_and_contract() -> None:
    model = KwargsWrapper(make_model())
    guard = LabelGuard(model)
    assert find_base(model) is guard.base is model.model
    assert guard.contract == LabelGuard(model).contract


def test_the_backbone_of_a_causal_lm_of_the_hub_is_not_the_base_model() -> None:
    model = RemoteCausalLM()
    guard = LabelGuard(model)
    assert guard.base is model
    assert model(input_ids=IDS, labels=IDS)["loss"] > 0
    assert guard.leaks == []


class WithAdapter(nn.Module):
    """A model with a PEFT model in an attribute that no wrapper uses."""

    def __init__(self, llm: nn.Module) -> None:
        super().__init__()
        self.projector = nn.Linear(HIDDEN, HIDDEN)
        self.llm = llm

    def forward(self, input_ids: Tensor) -> Any:
        return self.projector(self.llm.get_input_embeddings()(input_ids)), self.llm(input_ids=input_ids)


class Outer(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, input_ids: Tensor) -> Any:
        return [part(input_ids=input_ids) for part in self.parts]


@pytest.mark.parametrize(
    "wrap",
    [WithAdapter, Outer, lambda llm: Outer(WithAdapter(llm)), lambda llm: KwargsWrapper(WithAdapter(llm))],
    ids=["under a projector", "in a list", "two levels down", "under a kwargs wrapper"],
)
def test_the_model_beneath_peft_is_watched_wherever_it_is(wrap: Any) -> None:
    model = wrap(lora(make_model(), task_type="CAUSAL_LM"))
    with pytest.raises(TypeError, match="labels"):
        model(input_ids=IDS)
    guard = LabelGuard(model)
    model(input_ids=IDS)
    assert [leak.model for leak in guard.leaks] == ["StrictLM"]


def test_several_peft_models_in_one_are_all_watched() -> None:
    model = Outer(*(lora(make_model(), task_type="CAUSAL_LM") for _ in range(3)))
    guard = LabelGuard(model)
    model(input_ids=IDS)
    assert watched(guard).count("StrictLM") == 3
    assert guard.leaks[0].count == 3


class Block(nn.Module):
    """A layer of the user's, which takes any key."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Sequential(nn.Linear(3, 3))

    def forward(self, speech: Tensor, **kwargs: Any) -> Tensor:
        return self.linear(speech)


def test_layers_in_a_list_are_no_boundaries() -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(3))

        def forward(self, speech: Tensor, labels: Any = None) -> Tensor:
            for block in self.blocks:
                speech = block(speech)
            return speech

    assert watched(LabelGuard(Stack())) == ["Stack"]


class Inner(nn.Module):
    """A model of the user's that is not pretrained, and takes speech alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, speech: Tensor) -> Tensor:
        return self.linear(speech)


class AddsLabels(nn.Module):
    """A module that takes any key, and adds a label to the call of the model inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(3), Inner()

    def forward(self, speech: Tensor, **kwargs: Any) -> Tensor:
        return self.inner(self.norm(speech), **{"labels": speech, **kwargs})


class Closed(nn.Module):
    """A module that takes speech alone, and has a weight and a part that is no model to a wrapper."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.scale, self.part = nn.Parameter(torch.ones(1)), part

    def forward(self, speech: Tensor) -> Tensor:
        return self.part(speech) * self.scale


def test_a_model_in_an_open_module_deep_inside_a_closed_one_is_watched() -> None:
    model = Closed(Closed(AddsLabels()))
    with pytest.raises(TypeError, match="labels"):
        model(torch.ones(1, 3))
    guard = LabelGuard(model)
    model(torch.ones(1, 3))
    assert watched(guard) == ["Closed", "Inner"]
    assert [leak.model for leak in guard.leaks] == ["Inner"]


def test_open_layers_in_a_list_add_no_boundaries() -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(AddsLabels() for _ in range(3))

        def forward(self, speech: Tensor) -> Tensor:
            return speech

    assert watched(LabelGuard(Closed(Stack()))) == ["Closed"]


class AddsLabelsOutside(Closed):
    def forward(self, speech: Tensor) -> Tensor:
        return self.part(speech, labels=speech) * self.scale


def test_a_model_that_was_guarded_by_itself_stays_guarded_inside_a_wrapper() -> None:
    inner = Inner()
    guard = LabelGuard(inner)
    model = AddsLabelsOutside(inner)
    guard.reattach(model)
    assert watched(guard) == ["AddsLabelsOutside", "Inner"]
    model(torch.ones(1, 3))
    assert [leak.model for leak in guard.leaks] == ["Inner"]
    guard.remove()
    with pytest.raises(TypeError, match="labels"):
        model(torch.ones(1, 3))


def test_the_guard_leaves_a_model_that_another_takes_the_place_of() -> None:
    first, second = Inner(), Inner()
    guard = LabelGuard(first)
    guard.reattach(second)
    assert "forward" not in first.__dict__
    assert guard.boundaries == (second,)


def test_the_signature_of_a_decorated_forward_is_read() -> None:
    class Decorated(Mean):
        @functools.wraps(Mean.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    assert LabelGuard(Decorated()).contract.inputs == {"speech"}


def test_a_label_that_a_decorator_takes_is_an_input() -> None:
    class Decorated(Mean):
        @functools.wraps(Mean.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs), kwargs.pop("labels", None)

        forward.__wrapped__ = Mean.forward  # type: ignore[attr-defined]

    assert "labels" in LabelGuard(Decorated()).contract.inputs
