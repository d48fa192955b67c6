"""Layer 5: the function that the guard installs as the ``forward`` of a model instance."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any, Protocol

from torch import nn


class CallGuard(Protocol):
    """A guard as ``guard_forward`` uses it: one method, which removes leaks from a call."""

    def catch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]: ...


def guard_forward(
    guard: CallGuard, original: Callable[..., Any], inputs: frozenset[str], safe_positions: int
) -> Callable[..., Any]:
    """Return a function that checks the names of the arguments, then calls the original ``forward``.

    A clean call costs one comparison of names. Nothing is counted on this path, because a counter would break the
    graph of a model compiled with ``fullgraph=True``.

    Args:
        guard: receives the calls that contain a leak.
        original: the unbound ``forward``. A bound one would make a deep copy of the model run the original's weights.
        inputs: the names that may pass.
        safe_positions: how many leading positional arguments are inputs.
    """

    # Pickle stores the method by its name, so it must be `forward`: a loaded model then finds its class's own.
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if len(args) <= safe_positions and inputs.issuperset(kwargs):
            return original(self, *args, **kwargs)
        return original(self, **guard.catch(args, kwargs))

    forward.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    forward.label_guard = guard  # type: ignore[attr-defined]
    return forward


def unbind_forward(base: nn.Module) -> Callable[..., Any]:
    """Return the current ``forward`` of a model instance as a function whose first argument is the module."""
    own = base.__dict__.get("forward")
    if own is None:
        return type(base).forward
    if isinstance(own, MethodType) and own.__self__ is base:
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
