"""The function that the guard installs as the ``forward`` of a module, and where it is installed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any, Protocol

from torch import nn

from label_guard.names import is_label_like
from label_guard.signature import CLOSED


class CallGuard(Protocol):
    """A guard as ``guard_forward`` uses it."""

    def catch(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]: ...


def guard_forward(
    guard: CallGuard, original: Callable[..., Any], inputs: frozenset[str], positions: float, kind: str
) -> Callable[..., Any]:
    """Return a function that checks the names of the arguments, then calls the original ``forward``.

    A clean call costs one comparison of names. Nothing is counted on this path, because a counter would break the
    graph of a model compiled with ``fullgraph=True``.

    Args:
        guard: receives the calls that contain a leak.
        original: the unbound ``forward``. A bound one would make a deep copy of the model run the original's weights.
        inputs: the names that may pass.
        positions: how many leading positional arguments may pass.
        kind: what the original does with other names (``Signature.kind``).
    """
    may_take_others = kind != CLOSED

    # Pickle stores the method by its name, so it must be `forward`: a loaded model then finds its class's own.
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if len(args) <= positions:
            if inputs.issuperset(kwargs):
                return original(self, *args, **kwargs)
            if may_take_others:
                for name in kwargs:
                    if name not in inputs and is_label_like(name):
                        break
                else:
                    return original(self, *args, **kwargs)
        args, kwargs = guard.catch(args, kwargs)
        return original(self, *args, **kwargs)

    forward.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    forward.label_guard = guard  # type: ignore[attr-defined]
    return forward


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

    parameters = inspect.signature(own).parameters.values()
    receiver = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    forward.__signature__ = inspect.Signature([receiver, *parameters])  # type: ignore[attr-defined]
    return forward


def find_guard(forward: Any) -> Any:
    """Return the guard inside a ``forward``, or None; follows ``__wrapped__``, which accelerate and others set."""
    while forward is not None:
        if (guard := getattr(forward, "label_guard", None)) is not None:
            return guard
        forward = getattr(forward, "__wrapped__", None)
    return None
