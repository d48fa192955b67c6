"""What happens beside the steps: a line to read and a line to parse at each log, sentences spoken meanwhile."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from higgs_trainer.files import explain_failed_write, new_folder, write_text
from higgs_trainer.run_folder import name_samples

SHOWN = {
    "loss": "loss {:.3f}",
    "eval_loss": "held-out loss {:.3f}",
    "codebook_0_loss": "codebook 0 {:.3f}",
    "eval_codebook_0_loss": "codebook 0 {:.3f}",
    "codebook_0_accuracy": "accuracy {:.0%}",
    "eval_codebook_0_accuracy": "accuracy {:.0%}",
    "grad_norm": "gradient {:.2f}",
    "learning_rate": "rate {:.1e}",
    "audio_seconds_per_second": "{:.0f} s of audio a second",
    "fill": "{:.0%} full",
}


@contextmanager
def keeping_random_state() -> Iterator[None]:
    """Every generator goes on afterwards as if nothing had been drawn."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        yield
    random.setstate(python_state)
    np.random.set_state(numpy_state)


class ReadableProgress(ProgressCallback):
    """Trainer's progress bar, with a line to read at each log in place of the whole dictionary (which ``metrics.jsonl``
    and ``report_to`` have)."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A resumed run's bar starts where it goes on: else the time left is reckoned from steps that took none."""
        super().on_train_begin(args, state, control, **kwargs)
        self.current_step = state.global_step
        if self.training_bar is not None:
            self.training_bar.initial = self.training_bar.n = state.global_step
            self.training_bar.refresh()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        shown = [pattern.format(logs[key]) for key, pattern in SHOWN.items() if logs and key in logs]
        if state.is_world_process_zero and shown:
            line = f"step {state.global_step}/{state.max_steps}: " + ", ".join(shown)
            print(line, flush=True) if self.training_bar is None else self.training_bar.write(line)


class MetricsFile(TrainerCallback):
    """Appends each log to a file, a JSON object a line: ``step`` and the metrics.

    A run that goes on from a checkpoint first drops the lines of later steps, which it will write again, and a last
    line that a killed run left half written; a run from the beginning drops all.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero or not self.path.exists():
            return
        whole = [line for line in self.path.read_text(encoding="utf-8").splitlines(True) if line[-1] == "\n"]
        kept = [line for line in whole if 0 < json.loads(line)["step"] <= state.global_step]
        write_text(self.path, "".join(kept), remedy="make room and start again")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero:
            return
        line = json.dumps({"step": state.global_step, **(logs or {})}) + "\n"
        advice = "make room and go on with --resume_from_checkpoint true"
        with explain_failed_write(self.path, advice), self.path.open("a", encoding="utf-8") as file:
            file.write(line)


class GenerateSamples(TrainerCallback):
    """Speaks into ``folder/step-N`` before the first step, after each evaluation and at the end, as ``generate`` does.

    Speaking draws random numbers, and training goes on with those that it would have had without.
    """

    def __init__(self, generate_into: Callable[[Path], None], folder: Path) -> None:
        self.generate_into = generate_into
        self.folder = folder

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What training is to be compared with. A run that goes on has spoken already; one from the beginning drops
        what an earlier run said."""
        if state.global_step == 0:
            if state.is_world_process_zero:
                shutil.rmtree(self.folder, ignore_errors=True)
            self._generate(state)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._generate(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._generate(state)

    def _generate(self, state: TrainerState) -> None:
        if state.is_world_process_zero:
            self.generate(state.global_step)

    def generate(self, step: int) -> Path:
        """The folder of a step, in which is spoken unless that was done already."""
        folder = self.folder / name_samples(step)
        if not folder.exists():
            with keeping_random_state(), new_folder(folder) as unfinished:
                self.generate_into(unfinished)
        return folder
