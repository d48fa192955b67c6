"""Save checkpoints that are complete or absent, and resume a run from the last one.

Trainer writes a checkpoint file by file into a folder that already has its final name, and deletes an old checkpoint
file by file. A run that is killed meanwhile leaves a folder that looks like a checkpoint. Here a checkpoint is written
under another name, flushed to disk, and then renamed. After that the older ones are renamed, and then deleted.
"""

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerState, set_seed
from transformers.trainer import TRAINING_ARGS_NAME

from higgs_trainer.checksums import write_checksums
from higgs_trainer.distributed import find_processes
from higgs_trainer.errors import DamageError, RecipeError, list_first
from higgs_trainer.files import (
    explain_failed_write,
    flush_to_disk,
    move_into_place,
    read_json_object,
    remove_folder,
    restore_folders,
    write_json,
)
from higgs_trainer.run_folder import (
    ADAPTER_CONFIG,
    MODEL_CARD_FILE,
    RESUME_FILE,
    TRAINER_STATE_FILE,
    UNFINISHED_FOLDER,
    ResumeRecord,
    list_checkpoints,
    read_step,
)
from higgs_trainer.shared_paths import share_name
from higgs_trainer.training.changed_arguments import apply_changes, plan_optimizer, restore_patience
from higgs_trainer.training.checkpoint_damage import check_checkpoint, list_checkpoint_files
from higgs_trainer.training.trainer_base import TrainerBase

OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin", "optimizer_0")
"""Files of the optimizer's state: the first without FSDP, the others with FSDP."""

RESUME_REMEDY = "make room and resume with --resume_from_checkpoint true"


def find_start(
    output_dir: str | Path,
    resume_from_checkpoint: str | Path | bool | None,
    *,
    verified: Path | None = None,
) -> Path | None:
    """Find the checkpoint that a run starts from; None means the beginning.

    Args:
        resume_from_checkpoint: a checkpoint, or True for the last one in ``output_dir``. True means the beginning if
            there is none.
        verified: a checkpoint whose files have just been verified.

    Raises:
        DamageError: a file of the checkpoint is not as it was written.
        RecipeError: the folder is no checkpoint; it has no optimizer state, so that Trainer would silently start with a
            new optimizer; or ``output_dir`` has later checkpoints, which would be mistaken for those of this run.
    """
    complete = list_checkpoints(output_dir)
    if resume_from_checkpoint is True:
        start = complete[-1] if complete else None
    else:
        start = Path(resume_from_checkpoint) if resume_from_checkpoint else None
    if start is not None:
        _check_exists(start)
        if start != verified:
            _check_whole(start)
    if start is not None and not (start / TRAINER_STATE_FILE).is_file():
        raise RecipeError(
            f"training.resume_from_checkpoint: {start} is not a checkpoint of a training run. "
            "Give a folder checkpoint-N of the output folder, or true for the last one."
        )
    if start is not None and not any((start / name).exists() for name in OPTIMIZER_FILES):
        raise RecipeError(
            f"training.resume_from_checkpoint: {start} has no optimizer state (training.save_only_model), so the run "
            "cannot be resumed. Start a new run with this folder as model.name_or_path."
        )
    is_own = start is not None and start.resolve().parent == Path(output_dir).resolve()
    if later := [path for path in complete if not (is_own and start and read_step(path) <= read_step(start))]:
        raise RecipeError(
            f"training.output_dir: {output_dir} has {later[-1].name} of an earlier run. Resume it with "
            "--resume_from_checkpoint true, choose another folder, or pass --overwrite, which keeps the earlier "
            "run under another name."
        )
    return start


def share_start(find: Callable[[], Path | None]) -> Path | None:
    """Let process 0 find the checkpoint that a run starts from, and check that each process can read that folder.

    Processes of other machines may have another disk. One that starts at step 0 while the others continue would train
    other weights than they do, and nothing would show it.

    Raises:
        HiggsTrainerError: in each process; what ``find`` raised, or a process does not find the folder.
    """
    processes = find_processes()
    start = processes.share(find)
    if failed := processes.find_failed(start is None or start.is_dir()):
        ranks = list_first([str(rank) for rank in failed])
        raise RecipeError(
            f"training.resume_from_checkpoint: {start} is not on the disk of process {ranks}. "
            "Copy it to the same place on each machine, or use a folder that all machines share."
        )
    return start


def _check_exists(checkpoint: Path) -> None:
    if checkpoint.is_dir():
        return
    found = [path.name for path in list_checkpoints(checkpoint.parent)]
    there = (
        f"{checkpoint.parent} has {list_first(found)}" if found else f"{checkpoint.parent} has no checkpoint"
    )
    raise RecipeError(
        f"training.resume_from_checkpoint: there is no folder {checkpoint}; {there}. Give a folder checkpoint-N of "
        "the output folder, or true for the last one."
    )


def _check_whole(checkpoint: Path) -> None:
    others = [path for path in list_checkpoints(checkpoint.parent) if path.name != checkpoint.name]
    check_checkpoint(checkpoint, others)


def _find_best(checkpoint: Path) -> str | None:
    """Return the best checkpoint at the time of a checkpoint: that of this name in the same folder, or None."""
    best = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_FILE)).best_model_checkpoint
    found = None if best is None else checkpoint.parent / Path(best).name
    return str(found) if found is not None and found.is_dir() else None


def share_base_name(adapter: Path, output_dir: str | Path) -> None:
    """Let the configuration of an adapter name its base model as files in the run folder do (`share_name`)."""
    path = adapter / ADAPTER_CONFIG
    if path.is_file():
        config = read_json_object(path)
        if isinstance(name := config.get("base_model_name_or_path"), str):
            write_json(path, config | {"base_model_name_or_path": share_name(name, output_dir)})


class CompleteCheckpoints(TrainerBase):
    """Mixin for a Trainer that saves complete checkpoints: ``class T(CompleteCheckpoints, Trainer)``.

    Attributes:
        resume_record: what decides the numbers of the run, written into each checkpoint. None: nothing is written.
        changed_arguments: the training arguments that a resumed run has changed.
        verified_start: a checkpoint that has just been verified, so that its files are not read again for that.
    """

    resume_record: ResumeRecord | None = None
    changed_arguments: Collection[str] = ()
    verified_start: Path | None = None

    def train(
        self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train from the checkpoint that `find_start` finds. Folders that a killed run left are cleaned up first."""
        output_dir = Path(self.args.output_dir)
        if self.args.should_save:
            shutil.rmtree(output_dir / UNFINISHED_FOLDER, ignore_errors=True)
            restore_folders(output_dir)
        self.accelerator.wait_for_everyone()
        start = share_start(
            lambda: find_start(output_dir, resume_from_checkpoint, verified=self.verified_start)
        )
        return super().train(None if start is None else str(start), *args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, *device: Any) -> Any:
        """Take the micro-batches of a step, but none after the last step.

        Trainer would train one step too many when it resumes from a checkpoint of the last step.
        """
        if 0 < self.state.max_steps <= self.state.global_step:
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, *device)

    def _init_training_state(self, max_steps: int, *args: Any) -> Any:
        """Restore the state of the run from the checkpoint, but not the intervals of logs, evaluations and saves.

        Trainer takes these from the checkpoint, so that it would ignore those of the recipe. It does not restore early
        stopping, and looks for the best checkpoint only where the folder of the run was before it was moved.
        """
        started = super()._init_training_state(max_steps, *args)
        self.state.compute_steps(self.args, max_steps)
        _, _, checkpoint, _ = args
        if checkpoint is not None:
            self.state.best_model_checkpoint = _find_best(Path(checkpoint))
        restore_patience(self.state, self.callback_handler.callbacks)
        return started

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load both states, then apply the arguments that the run has changed, which the states would overwrite."""
        if checkpoint is None:
            return
        planned = plan_optimizer(self.optimizer, self.lr_scheduler)
        super()._load_optimizer_and_scheduler(checkpoint)
        apply_changes(self.optimizer, self.lr_scheduler, planned, self.changed_arguments)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore the random state, unless the run has another seed now."""
        super()._load_rng_state(checkpoint)
        if checkpoint is not None and "seed" in self.changed_arguments:
            set_seed(self.args.seed)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model without the pickle of Trainer's arguments, which are in ``recipe.yaml`` too.

        PEFT writes the path of the base model into an adapter: it becomes relative to the run folder. The card that
        PEFT writes into an unfinished checkpoint names it too, and is removed.
        """
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            if folder.parent.name == UNFINISHED_FOLDER:
                (folder / MODEL_CARD_FILE).unlink(missing_ok=True)
            share_base_name(folder, self.args.output_dir)

    def _get_output_dir(self, trial: Any) -> str:
        """Return the folder of unfinished checkpoints. Trainer writes there, and deletes old checkpoints only there."""
        return os.path.join(super()._get_output_dir(trial), UNFINISHED_FOLDER)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Let Trainer save a checkpoint, rename it when it is complete, and delete the oldest ones.

        Raises:
            SaveError: it could not be written; names the last complete checkpoint.
        """
        state: TrainerState = self.state
        unfinished = Path(self._get_output_dir(trial), f"checkpoint-{state.global_step}")
        target = unfinished.parent.parent / unfinished.name
        complete = list_checkpoints(target.parent)
        remedy = f"{complete[-1]} is complete" if complete else "no checkpoint was complete before it"
        remedy += f"; {RESUME_REMEDY}"
        try:
            with explain_failed_write(target, remedy):
                super()._save_checkpoint(model, trial)
                if state.best_model_checkpoint == str(unfinished):
                    state.best_model_checkpoint = str(target)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    # Trainer has saved the state with the unfinished name of the best checkpoint.
                    state.save_to_json(str(unfinished / TRAINER_STATE_FILE))
                    if self.resume_record is not None:
                        write_json(unfinished / RESUME_FILE, self.resume_record)
                    write_checksums(unfinished, list_checkpoint_files(unfinished))
                    flush_to_disk(unfinished)
                    move_into_place(unfinished, target)
                    self._remove_oldest(target.parent)
        except Exception:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        self.accelerator.wait_for_everyone()

    def _load_best_model(self) -> None:
        """Load the best checkpoint. Raise ``DamageError`` if it is missing or damaged; Trainer would only warn."""
        best = Path(self.state.best_model_checkpoint)
        if not best.is_dir():
            raise DamageError(
                f"{best}, the best checkpoint, is missing",
                "Set training.load_best_model_at_end to false and resume with --resume_from_checkpoint true.",
            )
        _check_whole(best)
        super()._load_best_model()

    def _remove_oldest(self, folder: Path) -> None:
        """Keep ``save_total_limit`` checkpoints, always including the best and the newest."""
        limit, best = self.args.save_total_limit, self.state.best_model_checkpoint
        if not limit:
            return
        complete = list_checkpoints(folder)
        spared = {complete[-1], *([Path(best)] if best else [])}
        removable = [checkpoint for checkpoint in complete if checkpoint not in spared]
        for checkpoint in removable[: max(0, len(complete) - max(limit, len(spared)))]:
            remove_folder(checkpoint)
