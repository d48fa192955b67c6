"""Check before the first step that the disk has room for the checkpoints of a run and its result."""

import math
import shutil
from dataclasses import dataclass

from torch import nn
from transformers import TrainingArguments

from higgs_trainer.errors import RecipeError
from higgs_trainer.recipe.schema import Recipe
from higgs_trainer.run_folder import list_checkpoints

GB = 10**9
TRAINED_BYTES = 4
"""Trained weights are float32."""
NARROW_BYTES = 2
"""Other weights may be bfloat16. Those in float32 take more."""
SAID_FROM_BYTES = GB
"""Smaller checkpoints are not worth a line."""


@dataclass(frozen=True)
class CheckpointSizes:
    """What the checkpoints of a run take on a disk, at least.

    Attributes:
        checkpoint: the bytes of one checkpoint.
        kept: how many are kept, at most.
        result: the bytes of the result, which is written when the last checkpoint is complete.
    """

    checkpoint: int
    kept: int
    result: int

    @property
    def most(self) -> int:
        """The bytes that are needed at once: one more checkpoint exists while it is written."""
        return max((self.kept + 1) * self.checkpoint, self.kept * self.checkpoint + self.result)


def estimate_sizes(
    recipe: Recipe, arguments: TrainingArguments, model: nn.Module, batches: int
) -> CheckpointSizes:
    """Estimate the sizes from the numbers of parameters. Files of a few megabytes are left out.

    Args:
        model: the model with its adapter, which may be on the meta device.
        batches: the batches of an epoch, of all processes.
    """
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    weights = trained * TRAINED_BYTES
    if recipe.adapter is None:
        # They are float32 in memory, and so in a checkpoint.
        weights += frozen * TRAINED_BYTES
    state = 0 if recipe.training.save_only_model else trained * _count_state_bytes(recipe.training.optim)
    narrow = NARROW_BYTES if recipe.adapter is None else TRAINED_BYTES
    return CheckpointSizes(
        weights + state, _count_kept(recipe, arguments, batches), weights // TRAINED_BYTES * narrow
    )


def check_disk_space(recipe: Recipe, sizes: CheckpointSizes) -> str | None:
    """Check that the disk of the output folder has room.

    Returns:
        A line about the sizes, or None if they are small.

    Raises:
        RecipeError: it has not; says how much is needed.
    """
    training = recipe.training
    needed = sizes.most
    if training.resume_from_checkpoint:
        needed -= sum(
            file.stat().st_size
            for checkpoint in list_checkpoints(training.output_dir)
            for file in checkpoint.rglob("*")
            if file.is_file()
        )
    existing = next(path for path in (training.output_dir, *training.output_dir.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    counted = (
        f"{sizes.kept} checkpoint{'s' if sizes.kept > 1 else ''} of {_format(sizes.checkpoint)} may be kept, and one "
        "more exists while it is written"
    )
    if needed > free:
        raise RecipeError(
            f"training.output_dir: the disk of {training.output_dir} has {_format(free)} free, but the run needs "
            f"{_format(needed)}: {counted}. Make room, choose another disk, or lower training.save_total_limit "
            f"({training.save_total_limit})."
        )
    if sizes.checkpoint < SAID_FROM_BYTES:
        return None
    return (
        f"{counted}: {_format(sizes.most)} on the disk, of which {_format(free)} are free. At 1 GB a second, "
        f"writing one takes {sizes.checkpoint / GB:.0f} s."
    )


def _count_state_bytes(optimizer: str) -> int:
    """Return the bytes that an optimizer keeps for each trained number, or 0 if that is not known."""
    if "8bit" in optimizer:
        return 2
    return 8 if optimizer.startswith("adamw") else 0


def _count_kept(recipe: Recipe, arguments: TrainingArguments, batches: int) -> int:
    """Return how many checkpoints a run keeps, at most: no more than it saves."""
    training = recipe.training
    per_step = (
        arguments.world_size * arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    )
    steps = training.max_steps
    if steps <= 0:
        steps = math.ceil(training.num_train_epochs * max(1, batches // per_step))
    epochs = math.ceil(steps * per_step / max(1, batches))
    if training.save_strategy == "epoch":
        saved = epochs
    elif training.save_strategy == "steps":
        every = training.save_steps
        saved = math.ceil(1 / every) if every < 1 else steps // int(every) + 1
    else:
        saved = epochs
    limit = training.save_total_limit
    if limit is None:
        return max(1, saved)
    # The newest and the best one are always kept.
    least = 2 if training.metric_for_best_model is not None or training.load_best_model_at_end else 1
    return max(1, min(saved, max(limit, least)))


def _format(number: int) -> str:
    return f"{number / GB:.1f} GB"
