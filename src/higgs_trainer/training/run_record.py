"""The record of a run that `report` and the model card read: its log, parameters, versions, state and guard."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from higgs_trainer.files import write_json
from higgs_trainer.model.parameters import count_trainable
from higgs_trainer.run_folder import (
    ENVIRONMENT_FILE,
    GUARD_REPORT_FILE,
    LOG_FILE,
    PARAMETERS_FILE,
    TRAINER_STATE_FILE,
)
from higgs_trainer.shared_paths import hide_paths, write_local_paths
from higgs_trainer.training.callbacks import MetricsFile
from higgs_trainer.training.environment import describe_environment
from label_guard import LabelGuard


def write_start(output_dir: Path, model: nn.Module, accelerator: Accelerator) -> dict[str, tuple[int, int]]:
    """Write which parameters will be trained, and with which versions. Return the counts of `count_trainable`."""
    trainable = count_trainable(model)
    counts = {kind: {"trained": trained, "all": total} for kind, (trained, total) in trainable.items()}
    write_json(output_dir / PARAMETERS_FILE, counts)
    write_json(output_dir / ENVIRONMENT_FILE, describe_environment(accelerator))
    return trainable


def write_base_path(folder: Path, base: str) -> None:
    """Write where the model is that an adapter in this folder names, if it is a folder (`find_shared`)."""
    if base and Path(base).is_dir():
        write_local_paths(folder, [base])


def write_end(folder: Path, state: TrainerState, guard: LabelGuard) -> None:
    """Write the state of the trainer and the report of the guard next to a trained model."""
    state.save_to_json(str(folder / TRAINER_STATE_FILE))
    write_json(folder / GUARD_REPORT_FILE, hide_paths(guard.ledger.report()))


class RunRecord(MetricsFile):
    """Write the log of a run and the files of `write_start` into the output folder.

    Nothing is written before training starts, so that an evaluation alone does not change the record of a run.

    Args:
        base: the folder or hub name of the model that is trained, which checkpoints of an adapter name. "": unknown.
    """

    def __init__(self, output_dir: Path, accelerator: Accelerator, base: str) -> None:
        super().__init__(output_dir / LOG_FILE)
        self.accelerator = accelerator
        self.base = base
        self.has_started = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self.has_started = True
        if state.is_world_process_zero:
            write_base_path(self.path.parent, self.base)
            write_start(self.path.parent, self.accelerator.unwrap_model(kwargs["model"]), self.accelerator)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.has_started:
            super().on_log(args, state, control, logs, **kwargs)
