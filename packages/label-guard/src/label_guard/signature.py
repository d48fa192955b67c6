"""Read which keys a model's ``forward`` takes."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

from torch import nn

from label_guard.names import is_label_like

# Arguments that transformers and PEFT themselves pass to a forward that ends in **kwargs. They are not data.
CALL_OPTIONS = frozenset(
    {
        "cache",
        "cache_position",
        "cu_seq_lens_k",
        "cu_seq_lens_q",
        "inputs_embeds",
        "is_causal",
        "max_length_k",
        "max_length_q",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "past_key_values",
        "position_ids",
        "return_dict",
        "seq_idx",
        "use_cache",
    }
)
# Arguments that the losses inside transformers' models read from the same **kwargs.
LOSS_OPTIONS = frozenset({"num_items_in_batch", "shift_labels"})

# What a forward does with a key that its signature does not list.
CLOSED = "refuses"
OPTIONS = "takes options"
OPEN = "takes everything"


@dataclass(frozen=True)
class Signature:
    """The signature of a ``forward``.

    Attributes:
        parameters: the names of its parameters.
        names: its parameters, and the keys that its ``**kwargs`` is known to take.
        positional: the parameters that can be passed by position, in order.
        only_positional: how many of them cannot be passed by name.
        takes_more_positions: whether it takes further positional arguments (``*args``).
        kind: what it does with other keys. ``CLOSED``: Python raises a TypeError. ``OPTIONS``: a transformers model
            with ``**kwargs``, in which options are expected and a label would be swallowed. ``OPEN``: any other
            ``**kwargs``.
    """

    parameters: frozenset[str]
    names: frozenset[str]
    positional: tuple[str, ...]
    only_positional: int
    takes_more_positions: bool
    kind: str

    @property
    def is_open(self) -> bool:
        """Whether a ``**kwargs`` takes keys of any name."""
        return self.kind == OPEN

    @property
    def names_a_label(self) -> bool:
        """Whether a parameter is a label."""
        return any(map(is_label_like, self.parameters))


def read_signature(module: nn.Module, forward: Callable[..., Any] | None = None) -> Signature:
    """Read the signature of a module's ``forward``.

    A typed ``**kwargs: Unpack[SomeTypedDict]`` names its keys. The ``**kwargs`` of a transformers model is known to
    take transformers' call options. Any other ``**kwargs`` leaves the signature open.

    Args:
        module: the module.
        forward: the bound ``forward`` to read; by default the module's current one.
    """
    forward = module.forward if forward is None else forward
    if (guard := getattr(forward, "label_guard", None)) is not None:
        # A guarded forward has the signature that was read when it was guarded.
        known: Signature = guard.signature
        return known
    try:
        signature = inspect.signature(forward)
    except (TypeError, ValueError):
        # Compiled code has no signature.
        return Signature(frozenset(), frozenset(), (), 0, True, OPEN)
    positional: list[str] = []
    named: set[str] = set(_read_decorators(forward))
    options: frozenset[str] = frozenset()
    only_positional, takes_more_positions, kind = 0, False, CLOSED
    for name, parameter in signature.parameters.items():
        if parameter.kind == parameter.VAR_POSITIONAL:
            takes_more_positions = True
            continue
        if parameter.kind == parameter.VAR_KEYWORD:
            typed = _read_typed_keys(parameter.annotation)
            options = typed | (CALL_OPTIONS | LOSS_OPTIONS if is_from_transformers(module) else frozenset())
            kind = OPTIONS if options else OPEN
            continue
        if parameter.kind != parameter.KEYWORD_ONLY:
            positional.append(name)
        only_positional += parameter.kind == parameter.POSITIONAL_ONLY
        named.add(name)
    parameters = frozenset(named)
    return Signature(
        parameters, parameters | options, tuple(positional), only_positional, takes_more_positions, kind
    )


def is_from_transformers(module: nn.Module) -> bool:
    """Whether a module's forward is defined in transformers, also where a subclass inherits it."""
    author = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
    return author.__module__.startswith("transformers.")


def _iterate_strings(code: CodeType) -> Iterator[str]:
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, tuple):
            yield from (item for item in constant if isinstance(item, str))
        elif isinstance(constant, CodeType):
            yield from _iterate_strings(constant)


def _read_decorators(forward: Any) -> Iterator[str]:
    """Yield the keys that decorators around a ``forward`` (``functools.wraps``) take, and the forward may not.

    Such a decorator usually takes ``*args, **kwargs``. A label that its code mentions, as in
    ``kwargs.pop("labels", None)``, is its own.
    """
    while (inner := getattr(forward, "__wrapped__", None)) is not None:
        try:
            parameters = inspect.signature(forward, follow_wrapped=False).parameters.values()
        except (TypeError, ValueError):
            return
        variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        names = (parameter.name for parameter in parameters if parameter.kind not in variadic)
        yield from (name for name in names if name != "self")
        code = getattr(forward, "__code__", None)
        if isinstance(code, CodeType):
            yield from (
                text for text in _iterate_strings(code) if text.isidentifier() and is_label_like(text)
            )
        forward = inner


def _read_typed_keys(annotation: object) -> frozenset[str]:
    """Return the keys of a ``**kwargs: Unpack[SomeTypedDict]``; none for any other annotation."""
    keys: frozenset[str] = frozenset()
    for argument in typing.get_args(annotation):
        keys |= frozenset(getattr(argument, "__annotations__", {}))
    return keys
