"""Translate the training section of a recipe into arguments of transformers' `TrainingArguments`."""

from pathlib import Path
from typing import Any

from higgs_trainer.recipe.consistency import ERROR_RATES
from higgs_trainer.recipe.schema import Recipe

EXAMPLES_PER_BATCH = 8
"""The batch size without packing, if the recipe does not set one."""


def build_training_arguments(recipe: Recipe) -> dict[str, Any]:
    """Return the keyword arguments of `TrainingArguments`.

    `resume_from_checkpoint` is left out, because it is an argument of `Trainer.train`. The sampler is sequential,
    because the plan of an epoch decides the order (`dataset/packing.py`). `gradient_checkpointing` is passed only if it
    is on, because transformers 5.23 renamed it and warns. `hub_strategy` is "end": with any other value, Trainer would
    push each checkpoint with a pickle of these arguments.
    """
    arguments = {name: _to_plain(value) for name, value in recipe.training.model_dump().items()}
    del arguments["resume_from_checkpoint"]
    metric = arguments["metric_for_best_model"] or ""
    if arguments["greater_is_better"] is None and metric.endswith(ERROR_RATES):
        arguments["greater_is_better"] = False
    arguments["train_sampling_strategy"] = "sequential"
    arguments["hub_strategy"] = "end"
    if arguments["per_device_train_batch_size"] is None:
        arguments["per_device_train_batch_size"] = 1 if recipe.data.packing else EXAMPLES_PER_BATCH
    if not arguments["gradient_checkpointing"]:
        del arguments["gradient_checkpointing"]
    return arguments


def _to_plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
