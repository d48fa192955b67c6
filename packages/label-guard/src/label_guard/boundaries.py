"""Find the modules at which a key can reach a ``forward`` that does not take it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from label_guard.signature import is_from_transformers, read_signature

# The attributes in which wrappers keep the model: DDP, FSDP and DeepSpeed; PEFT; torch.compile; activation
# checkpointing; and the modules that people write around a model.
WRAPPED = ("module", "model", "base_model", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# The libraries whose wrappers only pass a call on. `torch.nn` has DataParallel and DistributedDataParallel, and layers.
PASSING = ("torch.", "peft.", "accelerate.", "deepspeed.")
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


@dataclass(frozen=True)
class Boundaries:
    """The modules of a model at which calls are watched.

    Attributes:
        base: the model beneath all wrappers, which a contract is about.
        modules: the modules whose ``forward`` is guarded, from the outside inward; ``base`` is one of them.
    """

    base: nn.Module
    modules: tuple[nn.Module, ...]


def find_boundaries(model: nn.Module, base: nn.Module | None = None) -> Boundaries:
    """Find the modules of a model at which a key can reach a ``forward`` that does not take it.

    These are the base model, the outermost module that someone wrote, the base beneath each PEFT model anywhere in the
    tree, and the models inside modules that could pass a label on. Wrappers that only pass a call on are not among
    them. Guarding too many modules does no harm: a call that a closed ``forward`` does not take would have failed.

    Args:
        model: the model, wrapped or not.
        base: the base model, if the user names it.
    """
    base = find_base(model) if base is None else base
    found: dict[int, nn.Module] = {}
    for module in (*_iterate_boundaries(model, is_model=True), base):
        found.setdefault(id(module), module)
    return Boundaries(base, tuple(found.values()))


def find_base(model: nn.Module) -> nn.Module:
    """Return the base model beneath PEFT, DDP, FSDP, compile and accelerate wrappers, and modules that hold a model."""
    while (inner := _unwrap(model)) is not None:
        model = inner
    return model


def find_class(module: nn.Module) -> type:
    """Return a module's class as its author named it; ``fully_shard`` derives a class of its own from it."""
    return next(
        kind for kind in type(module).__mro__ if not kind.__module__.startswith("torch.distributed.fsdp")
    )


def _iterate_boundaries(
    module: nn.Module, *, is_model: bool, in_pretrained: bool = False, in_list: bool = False
) -> Iterator[nn.Module]:
    """Iterate over the boundaries in a module and beneath it, from the outside inward.

    Args:
        module: the module.
        is_model: whether the module is a model that a label could be passed to.
        in_pretrained: whether the module is a part of a pretrained model, as a backbone is.
        in_list: whether the module is in a list of modules, as a layer is.
    """
    in_list = in_list or isinstance(module, CONTAINERS)
    children = list(module.children())
    if children and find_class(module).__module__.startswith(PASSING):
        inner = _find_inner(module)
        if inner is not None:
            yield from _iterate_boundaries(
                inner, is_model=is_model or _find_peft_base(module) is not None, in_list=in_list
            )
            return
    else:
        is_pretrained = _is_pretrained(module)
        is_model = is_model or (is_pretrained and not in_pretrained)
        in_pretrained = in_pretrained or is_pretrained
        if is_model:
            yield from _watch(module)
    if is_from_transformers(module):
        # Its parts are its own, but an adapter in one of them passes labels on.
        children = [
            part for part in module.modules() if part is not module and _find_peft_base(part) is not None
        ]
        passes_labels_on = adds_labels = False
    else:
        passes_labels_on = is_model and _passes_labels_on(module)
        adds_labels = not in_list and _may_add_labels(module)
    for child in children:
        # A layer of a library is no model, and neither is an item of a list of modules.
        is_layer = not any(True for _ in child.children()) and find_class(child).__module__.startswith(
            PASSING
        )
        is_part = is_layer or isinstance(child, CONTAINERS)
        is_inner_model = passes_labels_on or (adds_labels and any(True for _ in child.children()))
        yield from _iterate_boundaries(
            child, is_model=is_inner_model and not is_part, in_pretrained=in_pretrained, in_list=in_list
        )


def _watch(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module, unless it is a wrapper that takes everything and computes nothing."""
    if not (read_signature(module).is_open and _unwrap(module) is not None):
        yield module


def _passes_labels_on(module: nn.Module) -> bool:
    """Whether a module of the user's could pass a label to a model inside it."""
    if find_class(module).__module__.startswith(PASSING):
        return False
    signature = read_signature(module)
    return signature.is_open or signature.names_a_label


def _may_add_labels(module: nn.Module) -> bool:
    """Whether a module of the user's, anywhere in a model, passes what it likes to the models inside it."""
    return not find_class(module).__module__.startswith(PASSING) and read_signature(module).is_open


def _find_inner(module: nn.Module) -> nn.Module | None:
    """Return the model inside a wrapper of a library; None for its containers and layers."""
    if (base := _find_peft_base(module)) is not None or isinstance(module, CONTAINERS):
        return base
    found = [child for name, child in module.named_children() if name in WRAPPED]
    return found[0] if len(found) == 1 else None


def _is_pretrained(module: nn.Module) -> bool:
    return hasattr(type(module), "from_pretrained")


def _find_peft_base(module: nn.Module) -> nn.Module | None:
    """Return the base model of a PEFT model, of prompt learning and mixed adapters too; None for another module."""
    get_base_model = getattr(type(module), "get_base_model", None)
    if callable(get_base_model):
        base = get_base_model(module)
    elif hasattr(type(module), "peft_type") or type(module).__name__ == "PeftMixedModel":
        base = getattr(getattr(module, "base_model", None), "model", None)
    else:
        return None
    return base if isinstance(base, nn.Module) else None


def _unwrap(module: nn.Module) -> nn.Module | None:
    """Return the model inside a wrapper, or None if the module is a base model."""
    if is_from_transformers(module):
        # Its attribute `model` is its own backbone.
        return None
    if (base := _find_peft_base(module)) is not None:
        return base
    children = dict(module.named_children())
    found = [name for name in WRAPPED if name in children]
    if len(found) != 1:
        return None
    inner = children[found[0]]
    others = any(_has_parameters(child) for child in children.values() if child is not inner)
    if others or next(module.parameters(recurse=False), None) is not None:
        # Parameters outside `inner`: a model that has a part called `model`.
        return None
    signature = read_signature(module)
    if signature.names_a_label:
        # It may compute the loss itself.
        return None
    if signature.is_open:
        # Its **kwargs passes on whatever it is given.
        return inner
    inner_signature = read_signature(inner)
    return inner if inner_signature.is_open or signature.parameters <= inner_signature.names else None


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
