"""Add LoRA adapters to a model, and load them, by PEFT.

Adapters have ``task_type=None``, because PEFT's ``CAUSAL_LM`` class adds ``labels=None`` to every call of the model.
Every name in the configuration must match a module; PEFT accepts names that match nothing if another one matches.
"""

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from higgs_trainer.errors import CheckpointError, DamageError, RecipeError, list_first, suggest_name
from higgs_trainer.input_files import check_ends
from higgs_trainer.model.families import Family
from higgs_trainer.model.model_files import verify_model
from higgs_trainer.model.weight_files import (
    ADAPTER_WEIGHTS,
    COPY_AGAIN,
    FLOATS,
    describe_missing_weights,
    read_headers,
    read_tensors,
)
from higgs_trainer.run_folder import ADAPTER_CONFIG, CHECKSUMS_FILE, MODEL_CONFIG
from higgs_trainer.shared_paths import NAMED, find_shared
from higgs_trainer.tensors import list_not_finite

logger = logging.getLogger(__name__)

SAME_RUN = "Give the adapter and the base model of the same run."


def add_lora(
    model: PreTrainedModel,
    family: Family,
    *,
    target_modules: str | Sequence[str] = "attention+audio_ffn",
    exclude_modules: Sequence[str] = (),
    modules_to_save: Sequence[str] = (),
    layers_to_transform: Sequence[int] | None = None,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, int] | None = None,
    **options: Any,
) -> PeftModel:
    """Add LoRA adapters to a model and freeze the rest.

    Args:
        target_modules: a preset of the family, or names of linear modules.
        options: other fields of PEFT's ``LoraConfig``, as are the remaining arguments.

    Raises:
        RecipeError: a name or a layer matches nothing, or PEFT refuses the configuration.
    """
    targets = resolve_targets(model, family, target_modules)
    check_modules_to_save(model, modules_to_save)
    _check_layers(model, layers_to_transform)
    # PEFT 0.13, which Boson's model needs, does not have this field.
    if exclude_modules:
        options["exclude_modules"] = list(exclude_modules)
    try:
        config = LoraConfig(
            task_type=None,
            target_modules=targets,
            modules_to_save=list(modules_to_save) or None,
            layers_to_transform=None if layers_to_transform is None else list(layers_to_transform),
            rank_pattern=dict(rank_pattern or {}),
            alpha_pattern=dict(alpha_pattern or {}),
            **options,
        )
        names = [name for name, _ in model.named_modules()]
        adapted_model = get_peft_model(model, config)
    except (ValueError, re.error) as error:
        raise RecipeError(f"adapter: {error}") from error
    adapted = _list_adapted(adapted_model)
    # A part of a preset may be excluded on purpose.
    if not isinstance(target_modules, str):
        _check_each_matches("target_modules", targets, adapted)
    _check_each_matches("exclude_modules", exclude_modules, names)
    _check_each_matches("rank_pattern", rank_pattern or {}, adapted, _matches_pattern)
    _check_each_matches("alpha_pattern", alpha_pattern or {}, adapted, _matches_pattern)
    return adapted_model


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Load an adapter into a model. Its weights are frozen.

    Raises:
        CheckpointError: a file is missing, the adapter does not fit the model, or a weight is not finite.
        DamageError: a file is not as it was written.
    """
    adapted = plan_adapter(model, folder)
    adapted.load_adapter(str(folder), "default")
    return adapted


def plan_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Add the layers of an adapter to a model, with new weights, and check that the stored ones fit.

    Args:
        model: may be on the meta device. Then the layers are too.

    Raises:
        CheckpointError, DamageError: as `load_adapter`.
    """
    if not verify_model(folder):
        logger.warning("%s has no %s, so a changed weight could not be found", folder, CHECKSUMS_FILE)
    read_base_name(folder)
    try:
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        # Some initial values are computed from the weights of the base. The stored values replace them.
        if model.device.type == "meta" and hasattr(config, "init_lora_weights"):
            config.init_lora_weights = False
        adapted = PeftModel(model, config)
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, re.error) as error:
        raise CheckpointError(
            f"the adapter {folder} does not fit the base {model.name_or_path} ({error}). {SAME_RUN}"
        ) from error
    check_adapter_weights(adapted, folder)
    return adapted


def check_adapter_weights(adapted: PeftModel, folder: Path) -> None:
    """Check that the weights in the folder of an adapter are exactly those of the model, and finite.

    PEFT ignores surplus weights, only warns of missing ones, and converts every dtype.

    Raises:
        CheckpointError: a weight is missing, surplus, of another shape, not a float, or not finite; names it.
        DamageError: the file is damaged.
    """
    file = folder / ADAPTER_WEIGHTS
    stored = read_headers([file])
    wanted = get_peft_model_state_dict(adapted)
    misshapen = [
        f"{name} {list(stored[name].shape)} instead of {list(wanted[name].shape)}"
        for name in sorted(stored.keys() & wanted.keys())
        if stored[name].shape != tuple(wanted[name].shape)
    ]
    problems = {
        "lacks": sorted(wanted.keys() - stored.keys()),
        "has weights that the model does not have:": sorted(stored.keys() - wanted.keys()),
        "has weights of another shape than the model:": misshapen,
        "has weights that are not floats:": [
            f"{name} {tensor.dtype}" for name, tensor in sorted(stored.items()) if tensor.dtype not in FLOATS
        ],
    }
    for what, names in problems.items():
        if names:
            raise CheckpointError(f"{file} {what} {list_first(names)}. {SAME_RUN}")
    if bad := list_not_finite((name, tensor.to(wanted[name].dtype)) for name, tensor in read_tensors(file)):
        raise CheckpointError(
            f"{file} has weights that are not finite: {list_first(bad)}. Use an earlier checkpoint of the run."
        )


def read_base_name(adapter: Path, *, needs_weights: bool = True) -> str:
    """Read the name of the base model from an adapter folder.

    Args:
        needs_weights: refuse an adapter without weights. Of an adapter on the hub, only the configuration may be here.

    Raises:
        CheckpointError: this is no adapter folder, it has no weights, or it names no base model.
        DamageError: the configuration is damaged.
    """
    config = adapter / ADAPTER_CONFIG
    if not config.is_file() and (adapter / MODEL_CONFIG).is_file():
        raise CheckpointError(
            f"{adapter} holds a whole model, not an adapter (no {ADAPTER_CONFIG}). It can be used as it is: there is "
            "nothing to merge."
        )
    if not config.is_file():
        raise CheckpointError(
            f"{adapter} is not an adapter folder: {ADAPTER_CONFIG} is missing. Give the folder that training wrote."
        )
    if needs_weights and not (adapter / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(describe_missing_weights(adapter, ADAPTER_WEIGHTS))
    check_ends(config, COPY_AGAIN, CheckpointError)
    try:
        name = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise DamageError(f"{config} is damaged ({error})", COPY_AGAIN) from error
    if not name or not isinstance(name, str):
        raise CheckpointError(
            f'{config}: "base_model_name_or_path" is missing. Name the base model with --base.'
        )
    if name.startswith((".", NAMED)):
        if (found := find_shared(name, adapter)) is None:
            raise CheckpointError(
                f"{config} names the base model {name}, which is not there. Correct base_model_name_or_path in that "
                "file: a path from its folder that starts with a dot, an absolute path or a name on the hub."
            )
        return str(found)
    return name


def resolve_targets(model: nn.Module, family: Family, targets: str | Sequence[str]) -> list[str]:
    """Return module names for PEFT: those of a preset, or the given ones.

    Raises:
        RecipeError: the preset is unknown, or a name matches no linear module.
    """
    if isinstance(targets, str):
        if targets not in family.lora_presets:
            raise RecipeError(
                f"adapter.target_modules: no preset {targets!r}. {suggest_name(targets, list(family.lora_presets))}"
            )
        targets = family.lora_presets[targets]
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    _check_each_matches("target_modules", targets, linear)
    return list(targets)


def check_modules_to_save(model: nn.Module, names: Sequence[str]) -> None:
    """Check that each name matches modules, none of them inside another one.

    PEFT would wrap a nested match twice, train and save it, and then fail to load it.

    Raises:
        RecipeError: a name matches nothing, or a module and one inside it.
    """
    modules = [name for name, _ in model.named_modules()]
    _check_each_matches("modules_to_save", names, modules)
    for wanted in names:
        found = [name for name in modules if _matches_end(wanted, name)]
        inner = [name for name in found if any(name.startswith(f"{outer}.") for outer in found)]
        if inner:
            longer = ".".join(inner[0].split(".")[-wanted.count(".") - 2 :])
            raise RecipeError(
                f"adapter.modules_to_save: {wanted!r} matches a module and {inner[0]} inside it. Write {longer!r}."
            )


def _check_layers(model: PreTrainedModel, layers: Sequence[int] | None) -> None:
    if layers is None:
        return
    num_layers = model.config.get_text_config().num_hidden_layers
    if absent := [layer for layer in layers if not 0 <= layer < num_layers]:
        raise RecipeError(
            f"adapter.layers_to_transform: no layer {', '.join(map(str, absent))}. "
            f"The layers of the model are 0 to {num_layers - 1}."
        )


def _matches_end(wanted: str, name: str) -> bool:
    """Whether PEFT's rule for names of modules matches: the end of the path, after a dot."""
    return name == wanted or name.endswith(f".{wanted}")


def _matches_pattern(pattern: str, name: str) -> bool:
    """Whether PEFT's rule for keys of `rank_pattern` and `alpha_pattern` matches: a regular expression."""
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def _check_each_matches(
    field: str,
    wanted: Iterable[str],
    names: Sequence[str],
    matches: Callable[[str, str], bool] = _matches_end,
) -> None:
    for one in wanted:
        if not any(matches(one, name) for name in names):
            known = sorted({name.rsplit(".", 1)[-1] for name in names if name})
            remedy = suggest_name(one.rsplit(".", 1)[-1], known)
            raise RecipeError(f"adapter.{field}: {one!r} matches no module. {remedy}")


def _list_adapted(model: PeftModel) -> list[str]:
    return [
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    ]
