"""Check, before anything is loaded, that a run can be trained in the processes that a launcher started for it."""

import os

from accelerate import DistributedType, PartialState
from transformers import TrainingArguments

from higgs_trainer.distributed import find_processes
from higgs_trainer.errors import RecipeError
from higgs_trainer.recipe.training_fields import DEEPSPEED, SHARDED_LAUNCH
from higgs_trainer.recipe.training_section import TrainingRecipe


def uses_fsdp(arguments: TrainingArguments) -> bool:
    """Return whether FSDP shards the model of a run."""
    return bool(arguments.fsdp) or _is_set("ACCELERATE_USE_FSDP")


def check_launcher() -> None:
    """Raise RecipeError if the processes were launched for DeepSpeed. They need not have joined."""
    if _is_set("ACCELERATE_USE_DEEPSPEED"):
        raise RecipeError(
            f"the launch file asks for DeepSpeed: {DEEPSPEED}. Spread the model with FSDP2: {SHARDED_LAUNCH}"
        )


def check_sharding(training: TrainingRecipe, arguments: TrainingArguments, *, builds_optimizer: bool) -> None:
    """Check that FSDP, if it shards the model, can do what the recipe asks for.

    Raises:
        RecipeError: it cannot, or it is FSDP 1.
    """
    if not uses_fsdp(arguments):
        return
    if _read_version(arguments) != 2:
        raise RecipeError(
            f"FSDP 1 is refused, because it was never tested here. Use FSDP 2: {SHARDED_LAUNCH}"
        )
    if find_processes().count > 1 and find_kind() == DistributedType.MULTI_CPU:
        raise RecipeError(
            "FSDP needs GPUs: on CPUs, accelerate would silently use DDP. Use higgs-trainer recipes launch/ddp"
        )
    if training.save_only_model:
        raise RecipeError(
            "training.save_only_model: under FSDP, a checkpoint has the shards of weights and optimizer. Set it to "
            "false, or training.save_strategy to no, which saves the result only."
        )
    if builds_optimizer:
        raise RecipeError(
            "build_optimizer: FSDP builds the optimizer for its shards. Leave it out, and set training.optim."
        )


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")


def find_kind() -> DistributedType:
    """Return what accelerate takes the processes for."""
    return PartialState().distributed_type


def _read_version(arguments: TrainingArguments) -> int:
    if arguments.fsdp:
        return int((arguments.fsdp_config or {}).get("version", 2))
    return int(os.environ.get("FSDP_VERSION", "1"))
