"""Add the adapters of a `LoraConfig` that a user built, with the checks of `add_lora`."""

import logging
import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from peft import LoraConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel

from higgs_trainer.errors import UserError
from higgs_trainer.model.adapters import add_lora
from higgs_trainer.model.families import Family

logger = logging.getLogger(__name__)

NOT_OPTIONS = (
    "task_type",
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
)
"""Fields of a `LoraConfig` that PEFT fills in, or that `add_lora` decides."""
PEFT_PRESETS = {"all-linear": "all_linear"}


def add_configured_lora(model: PreTrainedModel, family: Family, config: LoraConfig) -> PeftModel:
    """Add the adapters of a configuration, and freeze the rest. The configuration itself is not changed.

    Without ``target_modules``, the adapters are on attention and audio FFN. ``target_modules`` may be a preset of the
    family too.

    Raises:
        UserError: the configuration is not one of LoRA, or is for inference.
        RecipeError: a name or a layer matches nothing, or PEFT refuses the configuration.
    """
    if not isinstance(config, LoraConfig):
        raise UserError(
            f"peft_config is a {type(config).__name__}, but only LoRA was tested with these models. "
            "Give a LoraConfig, or None to train all parameters."
        )
    if config.inference_mode:
        raise UserError(
            "peft_config has inference_mode=True, so nothing would be trained. Remove inference_mode."
        )
    if config.task_type is not None:
        logger.warning(
            "peft_config has task_type=%r. Its class of PEFT passes labels=None to the model in every call, so the "
            "adapter is added without a task type. To silence this, remove task_type.",
            str(getattr(config.task_type, "value", config.task_type)),
        )
    default = LoraConfig()
    options: dict[str, Any] = {
        field.name: getattr(config, field.name)
        for field in fields(config)
        if field.name not in NOT_OPTIONS and getattr(config, field.name) != getattr(default, field.name, ...)
    }
    for name in ("exclude_modules", "modules_to_save", "layers_to_transform"):
        if isinstance(options.get(name), int | str):
            options[name] = [options[name]]
    if "target_modules" in options:
        options["target_modules"] = _list_targets(model, family, options["target_modules"])
    return add_lora(model, family, **options)


def _list_targets(model: nn.Module, family: Family, targets: str | Sequence[str]) -> str | list[str]:
    """Return a preset of the family, or names of modules. PEFT reads other text as a regular expression."""
    if not isinstance(targets, str):
        return sorted(targets)
    targets = PEFT_PRESETS.get(targets, targets)
    if targets in family.lora_presets:
        return targets
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    # If nothing matches, `add_lora` suggests a preset.
    return [name for name in linear if re.fullmatch(targets, name)] or targets
