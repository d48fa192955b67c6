"""Layer 5 itself: the ``forward`` that a guard puts on a base instance."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any, Protocol

from torch import nn


class CallGuard(Protocol):
    """What the guarded forward needs of its guard: to make a call clean that is not."""

    def catch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]: ...


def guard_forward(
    guard: CallGuard, inner: Callable[..., Any], inputs: frozenset[str], safe: int
) -> Callable[..., Any]:
    """A base's ``forward`` with the guard in front.

    A clean call costs one comparison of names. Nothing is counted, since a counter in a compiled forward breaks
    ``fullgraph``. ``inner`` is unbound, or a deep copy of the model would run the original's weights. Its name is
    ``forward``, so that a pickle of the model finds the class's own.
    """

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if len(args) <= safe and inputs.issuperset(kwargs):
            return inner(self, *args, **kwargs)
        return inner(self, **guard.catch(args, kwargs))

    forward.__signature__ = inspect.signature(inner)  # type: ignore[attr-defined]
    forward.label_guard = guard  # type: ignore[attr-defined]
    return forward


def unbound_forward(base: nn.Module) -> Callable[..., Any]:
    """The forward that a base has now, as a function that takes the module first."""
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


def guard_in(forward: Any) -> Any:
    """The guard in a forward, looked for beneath what accelerate and others wrap around it."""
    while forward is not None:
        if (guard := getattr(forward, "label_guard", None)) is not None:
            return guard
        forward = getattr(forward, "__wrapped__", None)
    return None
