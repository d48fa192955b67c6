"""The base: the one module beneath all wrappers whose ``forward`` is the model's own; and what that forward takes."""

from __future__ import annotations

import inspect
import typing
from dataclasses import dataclass

from torch import nn

# Where wrappers keep the model that they wrap: DDP, FSDP and DeepSpeed; PEFT; torch.compile; activation checkpoints;
# and the modules that people write around a model.
WRAPPED = ("module", "model", "base_model", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")

# What transformers' own code, and PEFT's, passes to a forward that ends in **kwargs: call options, no data.
CALL_OPTIONS = frozenset(
    {
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
# What the losses inside transformers' models read from the same **kwargs.
LOSS_OPTIONS = frozenset({"num_items_in_batch", "shift_labels"})


@dataclass(frozen=True)
class Signature:
    """What a base's ``forward`` takes.

    ``named`` are its parameters; ``names`` those and the keys that its ``**kwargs`` is known to take; ``positional``
    the parameters that may come without a name, in order; ``open`` says that it takes keys that nothing names;
    ``variadic`` that it takes ``*args``.
    """

    named: frozenset[str]
    names: frozenset[str]
    positional: tuple[str, ...]
    open: bool
    variadic: bool


def read_signature(base: nn.Module) -> Signature:
    """Read the signature of a base's ``forward``.

    A typed ``**kwargs: Unpack[SomeTypedDict]`` names its keys; an untyped one of a transformers model is known to take
    transformers' call options. Any other leaves the signature open.
    """
    named, positional, kinds = [], [], set()
    options: frozenset[str] = frozenset()
    takes_unnamed = False
    for name, parameter in inspect.signature(base.forward).parameters.items():
        kinds.add(parameter.kind)
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            positional.append(name)
        if parameter.kind == parameter.VAR_KEYWORD:
            options = _typed_keys(parameter.annotation)
            if _is_of_transformers(base):
                options |= CALL_OPTIONS | LOSS_OPTIONS
            takes_unnamed = not options
        elif parameter.kind != parameter.VAR_POSITIONAL:
            named.append(name)
    return Signature(
        named=frozenset(named),
        names=frozenset(named) | options,
        positional=tuple(positional),
        open=takes_unnamed,
        variadic=inspect.Parameter.VAR_POSITIONAL in kinds,
    )


def find_base(model: nn.Module) -> nn.Module:
    """The base beneath PEFT, DDP, FSDP, compile and accelerate wrappers, and beneath modules that only hold a model."""
    while (inner := _wrapped_by(model)) is not None:
        model = inner
    return model


def _wrapped_by(module: nn.Module) -> nn.Module | None:
    """The model that a wrapper wraps; None for a base."""
    if _is_of_transformers(module):
        return None  # its `model` is its own backbone
    get_base_model = getattr(module, "get_base_model", None)  # PEFT, prompt learning included
    if callable(get_base_model):
        base = get_base_model()
        return base if isinstance(base, nn.Module) else None
    children = dict(module.named_children())
    found = [name for name in WRAPPED if name in children]
    if len(found) != 1:
        return None
    inner = children[found[0]]
    signature = read_signature(module)
    if signature.open:
        return inner  # (**kwargs): it passes on whatever it is given
    others = any(_has_parameters(child) for child in children.values() if child is not inner)
    if others or next(module.parameters(recurse=False), None) is not None:
        return None  # a signature and parameters of its own: a model that has a part called `model`
    beneath = read_signature(inner)
    passes_on = beneath.open or {name for name in signature.named if "label" not in name} <= beneath.names
    return inner if passes_on else None


def class_of(module: nn.Module) -> type:
    """A module's class as its author named it: ``fully_shard`` puts one of its own in front."""
    return next(
        kind for kind in type(module).__mro__ if not kind.__module__.startswith("torch.distributed.fsdp")
    )


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _is_of_transformers(module: nn.Module) -> bool:
    """Whether a module's forward is one of transformers' own, also where a subclass took it over."""
    author = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
    return author.__module__.startswith("transformers.")


def _typed_keys(annotation: object) -> frozenset[str]:
    """The keys of a ``**kwargs: Unpack[SomeTypedDict]``."""
    keys: frozenset[str] = frozenset()
    for argument in typing.get_args(annotation):
        keys |= frozenset(getattr(argument, "__annotations__", {}))
    return keys
