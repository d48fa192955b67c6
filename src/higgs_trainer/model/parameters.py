"""Freeze parameters by kind of module, and count which parameters are trained."""

from collections import Counter
from collections.abc import Sequence

from torch import nn

from higgs_trainer.errors import RecipeError, suggest_name
from higgs_trainer.model.families import Family

PEFT_PARTS = frozenset(
    {
        "base_layer",
        "lora_A",
        "lora_B",
        "lora_magnitude_vector",
        "default",
        "modules_to_save",
        "original_module",
    }
)
"""Names that PEFT inserts into the path of a parameter."""


def freeze(model: nn.Module, family: Family, kinds: Sequence[str]) -> None:
    """Stop training every parameter of these kinds (``family.module_kinds``).

    Raises:
        RecipeError: the model has no parameter of a kind, or nothing is left to train.
    """
    present = [kind for kind in family.module_kinds if _list_parameters(model, family, kind)]
    for kind in kinds:
        if kind not in present:
            raise RecipeError(f"model.freeze: {kind!r} matches no parameter. {suggest_name(kind, present)}")
        for parameter in _list_parameters(model, family, kind):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise RecipeError(f"model.freeze: nothing is left to train. Freeze fewer of {', '.join(present)}.")


def freeze_text_head(model: nn.Module, family: Family) -> None:
    """Stop training the head over text. Without a text loss it gets no gradient, and DDP would wait for one."""
    for parameter in _list_parameters(model, family, "text_head"):
        parameter.requires_grad_(False)


def _list_parameters(model: nn.Module, family: Family, kind: str) -> list[nn.Parameter]:
    modules = family.module_kinds.get(kind, frozenset())
    return [
        parameter for name, parameter in model.named_parameters() if not modules.isdisjoint(name.split("."))
    ]


def count_trainable(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Count the parameters of each module name: name -> (trainable, all).

    A name is ``q_proj`` or ``audio_lm_head``; those of an FFN begin with the FFN, as in ``audio_mlp.up_proj``, because
    a layer has two of them.
    """
    trainable: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for path, parameter in model.named_parameters():
        name = _find_module_name(path)
        total[name] += parameter.numel()
        trainable[name] += parameter.numel() * parameter.requires_grad
    return {name: (trainable[name], total[name]) for name in total}


def describe_trainable(table: dict[str, tuple[int, int]]) -> str:
    """Describe the result of `count_trainable` in one line: how many parameters are trained, and of which modules."""
    trained, total = (sum(counts) for counts in zip(*table.values(), strict=True))
    names = ", ".join(name for name, (some, _) in table.items() if some)
    return f"{trained:,} of {total:,} parameters are trained ({trained / total:.2%}): {names}"


def _find_module_name(path: str) -> str:
    parts = [part for part in path.split(".") if part not in PEFT_PARTS and not part.isdigit()]
    name = parts[-2] if len(parts) > 1 else parts[0]
    parent = parts[-3] if len(parts) > 2 else ""
    return f"{parent}.{name}" if parent.endswith("mlp") else name
