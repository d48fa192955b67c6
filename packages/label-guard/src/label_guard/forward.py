"""The function that the guard installs as the ``forward`` of a module, and where it is installed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from label_guard.names import is_label_like
from label_guard.signature import CLOSED

if TYPE_CHECKING:
    from label_guard.guard import LabelGuard
    from label_guard.watched import WatchedForward

Call = tuple[tuple[Any, ...], dict[str, Any]]


def guard_forward(
    guard: WatchedForward, original: Callable[..., Any], inputs: frozenset[str], positions: float, kind: str
) -> Callable[..., Any]:
    """Return a function that checks the names of the arguments, then calls the original ``forward``.

    A clean call costs one comparison of names. Nothing is counted on this path, because a counter would break the
    graph of a model compiled with ``fullgraph=True``; a flag that is only written does not.

    Args:
        guard: told that the ``forward`` was called. Its ``catch`` gets the calls that contain a leak. While
            ``torch.compile`` traces a call, its ``decide`` returns the names that the graph is to remove, or None if
            ``catch`` is to do it outside the graph. Its ``traced`` gets what the graph removes.
        original: the unbound ``forward``. A bound one would make a deep copy of the model run the original's weights.
        inputs: the names that may pass.
        positions: how many leading positional arguments may pass.
        kind: what the original does with other names (``Signature.kind``).
    """
    may_take_others = kind != CLOSED
    record, catch, decide, traced = guard.record, guard.catch, guard.decide, guard.traced
    is_compiling = torch.compiler.is_compiling

    # Pickle stores the method by its name, so it must be `forward`: a loaded model then finds its class's own.
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        record.was_called = True
        if len(args) <= positions:
            if inputs.issuperset(kwargs):
                return original(self, *args, **kwargs)
            if may_take_others:
                for name in kwargs:
                    if name not in inputs and is_label_like(name):
                        break
                else:
                    return original(self, *args, **kwargs)
            if is_compiling():
                valued = tuple([name for name in kwargs if kwargs[name] is not None])
                removed = decide(tuple(kwargs), valued)
                if removed is not None:
                    for name in removed:
                        if kwargs[name] is not None:
                            setattr(traced, name, kwargs[name])
                    clean = {name: kwargs[name] for name in kwargs if name not in removed}
                    return original(self, *args, **clean)
        args, kwargs = catch(args, kwargs)
        return original(self, *args, **kwargs)

    forward.__signature__ = _read_signature(original)  # type: ignore[attr-defined]
    forward.label_guard = guard  # type: ignore[attr-defined]
    return forward


def _read_signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        # Compiled code has no signature.
        return None


def find_slot(module: nn.Module) -> str:
    """Return the attribute of a module that holds its innermost ``forward``.

    accelerate's ``add_hook_to_module`` moves the module's own ``forward`` to ``_old_forward``, and its hook may add
    keys above that.
    """
    return "_old_forward" if "_old_forward" in module.__dict__ and hasattr(module, "_hf_hook") else "forward"


def unbind_forward(module: nn.Module, slot: str = "forward") -> Callable[..., Any]:
    """Return the current ``forward`` of a module as a function whose first argument is the module."""
    own = module.__dict__.get(slot)
    if own is None:
        return type(module).forward
    if isinstance(own, MethodType) and own.__self__ is module:
        return own.__func__

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return own(*args, **kwargs)

    if (signature := _read_signature(own)) is not None:
        receiver = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        parameters = [receiver, *signature.parameters.values()]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return forward


def find_watched(forward: Any) -> Any:
    """Return what guards a ``forward``, or None; follows ``__wrapped__``, which accelerate and others set."""
    while forward is not None:
        if (watched := getattr(forward, "label_guard", None)) is not None:
            return watched
        forward = getattr(forward, "__wrapped__", None)
    return None


def find_guard(module: nn.Module) -> LabelGuard | None:
    """Return the guard whose layer 5 is in a module's own ``forward``, or None."""
    watched = find_watched(module.__dict__.get(find_slot(module)))
    return None if watched is None else watched.guard


def find_hidden_original(module: nn.Module) -> Any:
    """Return a function that replaced a module's ``forward`` and calls the original one; None if there is none.

    The guard is in front of such a function, and cannot see what the function passes on.
    """
    own = module.__dict__.get(find_slot(module))
    if own is None or find_watched(own) is not None:
        return None
    inner = own.__func__ if isinstance(own, MethodType) and own.__self__ is module else own
    parts = _iterate_parts(inner, depth=3)
    return inner if any(_is_forward_of(part, module) for part in parts if part is not own) else None


def _is_forward_of(value: Any, module: nn.Module) -> bool:
    is_bound = isinstance(value, MethodType) and value.__self__ is module
    return is_bound or value is type(module).forward


def _iterate_parts(function: Any, depth: int) -> Iterator[Any]:
    """Iterate over what a function calls or holds: closure, defaults, wrapped functions, arguments of a partial."""
    if depth == 0:
        return
    held: list[Any] = []
    if isinstance(function, partial):
        held += [function.func, *function.args, *function.keywords.values()]
    if isinstance(function, FunctionType):
        held += [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
        held += function.__defaults__ or ()
    if not isinstance(function, nn.Module):
        held += [getattr(function, "__wrapped__", None)]
    for value in held:
        if callable(value) and not isinstance(value, (type, nn.Module)):
            yield value
            yield from _iterate_parts(value, depth - 1)


def _is_filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
