"""LoRA on a model, and the table of what is trained.

Adapters are made with ``task_type=None``: PEFT's ``CAUSAL_LM`` class adds ``labels=None`` to every call of the model.
"""

from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from higgs_trainer.errors import RecipeError
from higgs_trainer.model.families import Family


def resolve_targets(model: nn.Module, family: Family, targets: str | Sequence[str]) -> list[str]:
    """Module names for PEFT: a preset's, or the given ones.

    Raises:
        RecipeError: an unknown preset, or a name that matches no module; it lists near names.
    """
    if isinstance(targets, str):
        if targets not in family.lora_presets:
            raise RecipeError(
                f"adapter.target_modules: no preset {targets!r}; there are {', '.join(family.lora_presets)}"
            )
        targets = family.lora_presets[targets]
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    suffixes = sorted({name.rsplit(".", 1)[-1] for name in linear})
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            near = get_close_matches(target, suffixes, n=3, cutoff=0.4) or suffixes
            raise RecipeError(
                f"adapter.target_modules: {target!r} matches no linear module; near: {', '.join(near)}"
            )
    return list(targets)


def check_modules_to_save(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The names, each of which matches a module and none inside another match.

    PEFT would wrap a nested match twice, train it, save it, and then fail to open what it saved.

    Raises:
        RecipeError: a name that matches nothing, or a module and one inside it.
    """
    modules = [name for name, _ in model.named_modules()]
    for wanted in names:
        found = [name for name in modules if name == wanted or name.endswith(f".{wanted}")]
        if not found:
            near = get_close_matches(wanted, {name.rsplit(".", 1)[-1] for name in modules}, n=3, cutoff=0.4)
            raise RecipeError(
                f"adapter.modules_to_save: {wanted!r} matches no module; near: {', '.join(near)}"
            )
        inner = [name for name in found if any(name.startswith(f"{outer}.") for outer in found)]
        if inner:
            longer = ".".join(inner[0].split(".")[-wanted.count(".") - 2 :])
            raise RecipeError(
                f"adapter.modules_to_save: {wanted!r} matches a module and {inner[0]} inside it; write {longer!r}"
            )
    return list(names)


def add_lora(
    model: PreTrainedModel,
    family: Family,
    *,
    r: int,
    lora_alpha: int,
    lora_dropout: float = 0.0,
    target_modules: str | Sequence[str] = "attention+audio_ffn",
    modules_to_save: Sequence[str] = (),
    use_rslora: bool = False,
) -> PeftModel:
    """The model with LoRA adapters, the rest frozen. The arguments are PEFT's."""
    config = LoraConfig(
        task_type=None,
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=resolve_targets(model, family, target_modules),
        modules_to_save=check_modules_to_save(model, modules_to_save) or None,
        use_rslora=use_rslora,
    )
    return get_peft_model(model, config)


def count_trainable(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Kind of module -> (trainable, all) parameters. The kind is the module's own name: ``q_proj``, ``audio_lm_head``;
    a layer's audio FFN and text FFN are told apart: ``audio_mlp.up_proj``."""
    trainable: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        kind = _kind_of(name)
        total[kind] += parameter.numel()
        trainable[kind] += parameter.numel() * parameter.requires_grad
    return {kind: (trainable[kind], total[kind]) for kind in total}


def _kind_of(parameter_name: str) -> str:
    parts = [part for part in parameter_name.split(".") if part not in PEFT_PARTS and not part.isdigit()]
    kind = parts[-2] if len(parts) > 1 else parts[0]
    parent = parts[-3] if len(parts) > 2 else ""
    return f"{parent}.{kind}" if parent.endswith("mlp") else kind


PEFT_PARTS = frozenset({"base_layer", "lora_A", "lora_B", "default", "modules_to_save", "original_module"})
