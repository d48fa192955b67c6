"""Find the base model beneath all wrappers, and read what its ``forward`` takes."""

from __future__ import annotations

import inspect
import typing
from dataclasses import dataclass

from torch import nn

# The attributes in which wrappers keep the model: DDP, FSDP and DeepSpeed; PEFT; torch.compile; activation
# checkpointing; and the modules that people write around a model.
WRAPPED = ("module", "model", "base_model", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")

# Arguments that transformers and PEFT themselves pass to a forward that ends in **kwargs. They are not data.
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
# Arguments that the losses inside transformers' models read from the same **kwargs.
LOSS_OPTIONS = frozenset({"num_items_in_batch", "shift_labels"})


@dataclass(frozen=True)
class Signature:
    """The signature of a base model's ``forward``.

    Attributes:
        parameters: the names of its parameters.
        names: its parameters and the keys that its ``**kwargs`` is known to take.
        positional: the parameters that can be passed by position, in order.
        is_open: whether its ``**kwargs`` takes keys that the signature does not name.
    """

    parameters: frozenset[str]
    names: frozenset[str]
    positional: tuple[str, ...]
    is_open: bool


def read_signature(base: nn.Module) -> Signature:
    """Read the signature of a model's ``forward``.

    A typed ``**kwargs: Unpack[SomeTypedDict]`` names its keys. An untyped ``**kwargs`` of a transformers model is known
    to take transformers' call options. Any other ``**kwargs`` leaves the signature open.
    """
    named, positional = [], []
    options: frozenset[str] = frozenset()
    is_open = False
    for name, parameter in inspect.signature(base.forward).parameters.items():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            positional.append(name)
        if parameter.kind == parameter.VAR_KEYWORD:
            options = _read_typed_keys(parameter.annotation)
            if _is_from_transformers(base):
                options |= CALL_OPTIONS | LOSS_OPTIONS
            is_open = not options
        elif parameter.kind != parameter.VAR_POSITIONAL:
            named.append(name)
    parameters = frozenset(named)
    return Signature(parameters, parameters | options, tuple(positional), is_open)


def find_base(model: nn.Module) -> nn.Module:
    """Return the base model beneath PEFT, DDP, FSDP, compile and accelerate wrappers, and modules that hold a model."""
    while (inner := _unwrap(model)) is not None:
        model = inner
    return model


def _unwrap(module: nn.Module) -> nn.Module | None:
    """Return the model inside a wrapper, or None if the module is a base model."""
    if _is_from_transformers(module):
        # Its attribute `model` is its own backbone.
        return None
    # PEFT, prompt learning included.
    get_base_model = getattr(module, "get_base_model", None)
    if callable(get_base_model):
        base = get_base_model()
        return base if isinstance(base, nn.Module) else None
    children = dict(module.named_children())
    found = [name for name in WRAPPED if name in children]
    if len(found) != 1:
        return None
    inner = children[found[0]]
    signature = read_signature(module)
    if signature.is_open:
        # Its **kwargs passes on whatever it is given.
        return inner
    others = any(_has_parameters(child) for child in children.values() if child is not inner)
    if others or next(module.parameters(recurse=False), None) is not None:
        # Named arguments and parameters outside `inner`: a model that has a part called `model`.
        return None
    inner_signature = read_signature(inner)
    data = {name for name in signature.parameters if "label" not in name}
    return inner if inner_signature.is_open or data <= inner_signature.names else None


def find_class(module: nn.Module) -> type:
    """Return a module's class as its author named it; ``fully_shard`` derives a class of its own from it."""
    return next(
        kind for kind in type(module).__mro__ if not kind.__module__.startswith("torch.distributed.fsdp")
    )


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _is_from_transformers(module: nn.Module) -> bool:
    """Whether a module's forward is defined in transformers, also where a subclass inherits it."""
    author = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
    return author.__module__.startswith("transformers.")


def _read_typed_keys(annotation: object) -> frozenset[str]:
    """Return the keys of a ``**kwargs: Unpack[SomeTypedDict]``; none for any other annotation."""
    keys: frozenset[str] = frozenset()
    for argument in typing.get_args(annotation):
        keys |= frozenset(getattr(argument, "__annotations__", {}))
    return keys
