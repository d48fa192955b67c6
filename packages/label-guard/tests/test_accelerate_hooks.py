"""Hooks of accelerate replace a module's forward. The guard stays beneath them, whichever came first."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module, remove_hook_from_module
from torch import Tensor, nn

from label_guard import LabelGuard
from tiny_guarded import KwargsWrapper, make_model

IDS = torch.arange(5).unsqueeze(0)


class AddLabels(ModelHook):
    """A hook that adds labels to the call of its module."""

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return args, {**kwargs, "labels": IDS}


def align(model: nn.Module) -> None:
    add_hook_to_module(model, AlignDevicesHook(execution_device="cpu", io_same_device=True))


def offload(model: nn.Module) -> None:
    cpu_offload(model, execution_device=torch.device("cpu"))


def dispatch(model: nn.Module) -> None:
    parts = {name: "cpu" for name, _ in model.named_children()}
    dispatch_model(model, parts, main_device="cpu", force_hooks=True)


def add_labels(model: nn.Module) -> None:
    add_hook_to_module(model, AddLabels())


HOOKS = {"add_hook_to_module": align, "cpu_offload": offload, "dispatch_model": dispatch}
hooks = pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
orders = pytest.mark.parametrize("hooked_first", [True, False], ids=["hooked first", "guarded first"])
Hook = Callable[[nn.Module], None]


def guard_and_hook(model: nn.Module, hook: Hook, *, hooked_first: bool) -> LabelGuard:
    if hooked_first:
        hook(model)
        return LabelGuard(model)
    guard = LabelGuard(model)
    hook(model)
    return guard


def logits_of(model: nn.Module, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(IDS, **kwargs).logits


@orders
@hooks
def test_a_label_does_not_reach_a_hooked_model(hook: Hook, hooked_first: bool) -> None:
    expected = logits_of(make_model())
    model = make_model()
    guard = guard_and_hook(model, hook, hooked_first=hooked_first)
    assert torch.equal(logits_of(model, labels=IDS), expected)
    assert torch.equal(guard.pop_targets()["labels"], IDS)
    assert guard.ledger.verdict().startswith("guarded: 1 leak")
    assert "not watched" not in guard.ledger.verdict()


@orders
def test_a_label_that_a_hook_adds_is_stopped_and_the_hook_is_named(hooked_first: bool) -> None:
    expected = logits_of(make_model())
    model = make_model()
    guard = guard_and_hook(model, add_labels, hooked_first=hooked_first)
    assert torch.equal(logits_of(model), expected)
    assert [leak.key for leak in guard.leaks] == ["labels"]
    assert guard.leaks[0].source.name.startswith("accelerate hook AddLabels.pre_forward (")


@orders
def test_a_label_that_a_hook_on_a_model_in_a_wrapper_adds_is_stopped(hooked_first: bool) -> None:
    model = KwargsWrapper(make_model()).eval()
    guard = guard_and_hook(model, lambda model: add_labels(model.model), hooked_first=hooked_first)
    model(input_ids=IDS)
    assert [leak.key for leak in guard.leaks] == ["labels"]


@orders
@hooks
def test_the_guard_stays_when_the_hook_is_removed(hook: Hook, hooked_first: bool) -> None:
    expected = logits_of(make_model())
    model = make_model()
    guard = guard_and_hook(model, hook, hooked_first=hooked_first)
    remove_hook_from_module(model, recurse=True)
    assert guard.is_attached(model)
    assert torch.equal(logits_of(model, labels=IDS), expected)
    assert len(guard.leaks) == 1


@orders
@hooks
def test_the_hook_stays_when_the_guard_is_removed(hook: Hook, hooked_first: bool) -> None:
    expected = logits_of(make_model())
    model = make_model()
    guard = guard_and_hook(model, hook, hooked_first=hooked_first)
    guard.remove()
    assert hasattr(model, "_hf_hook")
    assert torch.equal(logits_of(model), expected)
    with pytest.raises(TypeError, match="unexpected keyword argument 'labels'"):
        model(IDS, labels=IDS)
    assert guard.leaks == []


@orders
@hooks
def test_nothing_is_left_when_the_hook_and_then_the_guard_are_removed(hook: Hook, hooked_first: bool) -> None:
    model = make_model()
    guard = guard_and_hook(model, hook, hooked_first=hooked_first)
    remove_hook_from_module(model, recurse=True)
    guard.remove()
    # accelerate itself leaves the class's forward, bound to the module.
    left = model.__dict__.get("forward", model.forward)
    assert left.__func__ is type(model).forward
    assert not {"__reduce_ex__", "_old_forward", "_hf_hook"} & set(model.__dict__)
