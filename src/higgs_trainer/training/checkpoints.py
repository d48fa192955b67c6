"""A checkpoint is complete or absent; a run goes on from the last one.

Trainer writes a checkpoint file by file into a folder that already has its final name, and deletes old ones the same
way. A run that is killed meanwhile leaves a folder that looks like a checkpoint. Here it is written aside, flushed to
the disk, and then renamed; only then do older ones go, and those are renamed first as well.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerState
from transformers.trainer import TRAINING_ARGS_NAME

from higgs_trainer.errors import RecipeError, SaveError
from higgs_trainer.files import (
    TORCH_WRITE_ERRORS,
    explain_failed_write,
    flush_to_disk,
    move_into_place,
    remove_folder,
    restore_folders,
)
from higgs_trainer.run_folder import TRAINER_STATE_FILE, UNFINISHED_FOLDER

OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin", "optimizer_0")  # alone, and FSDP's two


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The complete checkpoints of a run, the oldest first."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if path.is_dir() and _step_of(path) >= 0]
    return sorted(found, key=_step_of)


def _step_of(checkpoint: Path) -> int:
    match = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(match[1]) if match else -1


def find_start(output_dir: str | Path, resume_from_checkpoint: str | Path | bool | None) -> Path | None:
    """The checkpoint that a run starts from, or None for the beginning: so too for True where there is none yet.

    Raises:
        RecipeError: it is no checkpoint, or one without the optimizer's state, from which Trainer would go on silently
            with a new optimizer; or the folder holds later checkpoints, which a later resume would take for this run's.
    """
    complete = list_checkpoints(output_dir)
    if resume_from_checkpoint is True:
        start = complete[-1] if complete else None
    else:
        start = Path(resume_from_checkpoint) if resume_from_checkpoint else None
    if start is not None and not (start / TRAINER_STATE_FILE).is_file():
        raise RecipeError(f"training.resume_from_checkpoint: {start} is no checkpoint of a training run")
    if start is not None and not any((start / name).exists() for name in OPTIMIZER_FILES):
        raise RecipeError(
            f"training.resume_from_checkpoint: {start} holds no optimizer state (training.save_only_model), so the run "
            "cannot go on as it was; start a new one with model.name_or_path"
        )
    is_own = start is not None and start.resolve().parent == Path(output_dir).resolve()
    if later := [path for path in complete if not (is_own and start and _step_of(path) <= _step_of(start))]:
        raise RecipeError(
            f"training.output_dir: {output_dir} holds {later[-1].name} of an earlier run; go on from it with "
            "--resume_from_checkpoint true, or choose another folder, or move it away"
        )
    return start


class CompleteCheckpoints:
    """Complete checkpoints for a Trainer: ``class T(CompleteCheckpoints, Trainer)``."""

    def train(
        self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Trainer's, from where `find_start` says."""
        trainer: Any = self
        output_dir = Path(trainer.args.output_dir)
        if trainer.args.should_save:
            shutil.rmtree(output_dir / UNFINISHED_FOLDER, ignore_errors=True)
            restore_folders(output_dir)
        trainer.accelerator.wait_for_everyone()
        start = find_start(output_dir, resume_from_checkpoint)
        return super().train(None if start is None else str(start), *args, **kwargs)  # type: ignore[misc]

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, *device: Any) -> Any:
        """Trainer's; none where the last step is done: a run resumed from there would train one more."""
        trainer: Any = self
        if 0 < trainer.state.max_steps <= trainer.state.global_step:
            trainer.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, *device)  # type: ignore[misc]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Trainer's, without the pickle of its arguments, which nothing reads: ``recipe.yaml`` says the same."""
        trainer: Any = self
        super().save_model(output_dir, _internal_call)  # type: ignore[misc]
        if trainer.args.should_save:
            Path(output_dir or trainer.args.output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _get_output_dir(self, trial: Any) -> str:
        """Where Trainer writes checkpoints, and where it looks for those that it deletes: aside, both."""
        return os.path.join(super()._get_output_dir(trial), UNFINISHED_FOLDER)  # type: ignore[misc]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        trainer: Any = self
        state: TrainerState = trainer.state
        unfinished = Path(self._get_output_dir(trial), f"checkpoint-{state.global_step}")
        target = unfinished.parent.parent / unfinished.name
        complete = list_checkpoints(target.parent)
        advice = f"{complete[-1]} is complete" if complete else "no checkpoint was complete before it"
        advice += "; make room and go on with --resume_from_checkpoint true"
        try:
            with explain_failed_write(target, advice, errors=TORCH_WRITE_ERRORS):
                super()._save_checkpoint(model, trial)  # type: ignore[misc]
                if state.best_model_checkpoint == str(unfinished):
                    state.best_model_checkpoint = str(target)
                trainer.accelerator.wait_for_everyone()
                if trainer.args.should_save:
                    # Once more: it holds the best checkpoint's name, which is right only now.
                    state.save_to_json(str(unfinished / TRAINER_STATE_FILE))
                    flush_to_disk(unfinished)
                    move_into_place(unfinished, target)
                    self._remove_oldest(target.parent)
        except SaveError:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        trainer.accelerator.wait_for_everyone()

    def _remove_oldest(self, folder: Path) -> None:
        """Keep ``save_total_limit`` checkpoints, the best and the newest always among them."""
        trainer: Any = self
        limit, best = trainer.args.save_total_limit, trainer.state.best_model_checkpoint
        if not limit:
            return
        complete = list_checkpoints(folder)
        spared = {complete[-1], *([Path(best)] if best else [])}
        removable = [checkpoint for checkpoint in complete if checkpoint not in spared]
        for checkpoint in removable[: max(0, len(complete) - max(limit, len(spared)))]:
            remove_folder(checkpoint)
