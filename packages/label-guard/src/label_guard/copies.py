"""Let a copy of a guarded module run its own modules, and guard it by itself.

Python finds ``forward`` in the module's own variables, where it is bound to the original. So a guarded module tells
``copy``, ``pickle`` and ``nn.DataParallel`` how to copy it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any

from torch import nn

from label_guard.forward import find_slot

if TYPE_CHECKING:
    from label_guard.contract import Contract
    from label_guard.guard import LabelGuard
    from label_guard.watched import WatchedForward

# The methods that a guarded module has in its own variables.
METHODS = ("__reduce_ex__", "__deepcopy__", "_replicate_for_data_parallel")
# torch.save uses this protocol. What it stores must load where label_guard is not installed.
PLAIN_PROTOCOL = 2


class Blueprint:
    """What guards a copy: the same guard in this process, a new guard with the same policy in another.

    Args:
        guard: the guard of the original.
    """

    def __init__(self, guard: LabelGuard) -> None:
        self.guard = guard

    def __deepcopy__(self, memo: dict[int, Any]) -> Blueprint:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_blueprint, (self.guard.policy,)


def _load_blueprint(policy: str) -> Blueprint:
    from label_guard.guard import LabelGuard

    # The models of the guard are those that are loaded with it.
    return LabelGuard(nn.Module(), policy=policy, layers=frozenset()).blueprint


def make_copyable(watched: WatchedForward) -> None:
    """Let a guarded module be copied, pickled and replicated."""
    module = watched.module
    variables = module.__dict__
    variables["__reduce_ex__"] = lambda protocol: _reduce(watched, protocol)
    variables["_replicate_for_data_parallel"] = lambda: _replicate(watched)
    if hasattr(type(module), "__deepcopy__"):
        variables["__deepcopy__"] = lambda memo: _deepcopy(watched, memo)


def forget_copying(module: nn.Module) -> None:
    """Remove the methods that `make_copyable` added."""
    for name in METHODS:
        module.__dict__.pop(name, None)


def _reduce(watched: WatchedForward, protocol: int) -> Any:
    """Describe a module for ``copy`` and ``pickle``: without the guard, and how to guard the copy."""
    module = watched.module
    reduced = type(module).__reduce_ex__(module, protocol)
    if isinstance(reduced, str) or len(reduced) < 3 or not isinstance(reduced[2], dict):
        return reduced
    make, arguments, state = reduced[:3]
    state = _strip(watched, dict(state))
    if protocol == PLAIN_PROTOCOL or not watched.is_active:
        return (make, arguments, state, *reduced[3:])
    return _make, (make, arguments, watched.guard.blueprint, watched.contract), state


def _strip(watched: WatchedForward, variables: dict[str, Any]) -> dict[str, Any]:
    """Remove the guard from the variables of a module, or of a copy of it."""
    for name in METHODS:
        variables.pop(name, None)
    slot = find_slot(watched.module)
    if getattr(variables.get(slot), "label_guard", None) is watched:
        watched.restore(watched.module, variables, slot)
    return variables


def _make(
    make: Callable[..., nn.Module],
    arguments: tuple[Any, ...],
    blueprint: Blueprint,
    contract: Contract | None,
) -> nn.Module:
    """Make an empty module that is guarded as soon as its state is set."""
    module = make(*arguments)

    def set_state(state: dict[str, Any]) -> None:
        del module.__dict__["__setstate__"]
        module.__setstate__(state)
        _guard(module, blueprint.guard, contract)

    module.__dict__["__setstate__"] = set_state
    return module


def _guard(module: nn.Module, guard: LabelGuard, contract: Contract | None) -> None:
    from label_guard.watched import WatchedForward

    WatchedForward(module, guard, contract).install()


def _deepcopy(watched: WatchedForward, memo: dict[int, Any]) -> Any:
    """Copy a module whose class says how, and guard the copy."""
    module = watched.module
    was_active = watched.is_active
    watched.uninstall()
    try:
        copied = type(module).__deepcopy__(module, memo)  # type: ignore[attr-defined]
    finally:
        if was_active:
            watched.install()
    if was_active and isinstance(copied, nn.Module):
        _guard(copied, watched.guard, watched.contract)
    return copied


def _replicate(watched: WatchedForward) -> nn.Module:
    """Make a replica for a device of ``nn.DataParallel``, with a guarded ``forward`` that runs the replica."""
    module = watched.module
    replica: nn.Module = type(module)._replicate_for_data_parallel(module)
    for name in METHODS:
        replica.__dict__.pop(name, None)
    slot = find_slot(module)
    forward = replica.__dict__.get(slot)
    if isinstance(forward, MethodType) and forward.__self__ is module:
        replica.__dict__[slot] = MethodType(forward.__func__, replica)
    return replica
