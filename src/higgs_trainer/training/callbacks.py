"""Callbacks of a run: a progress bar, a file of metrics, and samples of generated speech."""

import json
import logging
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length

from higgs_trainer.distributed import Processes, find_processes
from higgs_trainer.files import explain_failed_write, new_folder, write_text
from higgs_trainer.progress import ProgressBar
from higgs_trainer.run_folder import name_samples
from higgs_trainer.terminal import echo, find_width
from higgs_trainer.training.checkpoints import RESUME_REMEDY

SHOWN = {
    "loss": "loss {:.3f}",
    "eval_loss": "held-out loss {:.3f}",
    "codebook_0_loss": "codebook 0 {:.3f}",
    "eval_codebook_0_loss": "codebook 0 {:.3f}",
    "codebook_0_accuracy": "accuracy {:.0%}",
    "eval_codebook_0_accuracy": "accuracy {:.0%}",
    "grad_norm": "gradient {:.3g}",
    "learning_rate": "rate {:.1e}",
    "audio_seconds_per_second": "{:.0f} s of audio a second",
    "fill": "{:.0%} full",
}


SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


@contextmanager
def keeping_random_state() -> Iterator[None]:
    """Restore the state of every random generator after the block."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


class ShowProgress(TrainerCallback):
    """Show the steps of a run and of each evaluation as they are done, and one readable line per log.

    All metrics are in ``metrics.jsonl`` and go to the integrations of ``report_to``. A terminal gets as many of them in
    a line as fit.
    """

    def __init__(self) -> None:
        self.steps: ProgressBar | None = None
        self.evaluation: ProgressBar | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.steps = ProgressBar("training", state.max_steps, done=state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.steps is not None:
            self.steps.update(state.global_step)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero:
            return
        if self.evaluation is None:
            total = len(eval_dataloader) if has_length(eval_dataloader) else None
            self.evaluation = ProgressBar("evaluating", total, stays=False)
        self.evaluation.advance()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._end_evaluation()

    def on_predict(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *rest: Any, **kwargs: Any
    ) -> None:
        self._end_evaluation()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        shown = [pattern.format(logs[key]) for key, pattern in SHOWN.items() if logs and key in logs]
        if not state.is_world_process_zero or not shown:
            return
        self._end_evaluation()
        echo(join_fitting(f"step {state.global_step}/{state.max_steps}: ", shown, find_width()))
        if self.steps is not None:
            self.steps.rest()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bars, also if an exception has ended the run."""
        self._end_evaluation()
        if self.steps is not None:
            self.steps.close()
            self.steps = None

    def _end_evaluation(self) -> None:
        if self.evaluation is not None:
            self.evaluation.close()
            self.evaluation = None


def join_fitting(beginning: str, parts: Sequence[str], width: int | None) -> str:
    """Join parts by commas, as many as fit into a line, and at least one. Without a width, join all."""
    line = beginning + parts[0]
    for part in parts[1:]:
        longer = f"{line}, {part}"
        if width is not None and len(longer) > width:
            return line
        line = longer
    return line


@contextmanager
def hiding_alignment() -> Iterator[None]:
    """Hide the message that Trainer aligned the special tokens of the model, because `KeepSpecialTokens` undoes it."""
    of_trainer = logging.getLogger("transformers.trainer_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return "PAD/BOS/EOS tokens" not in record.getMessage()

    of_trainer.addFilter(is_other)
    try:
        yield
    finally:
        of_trainer.removeFilter(is_other)


class KeepSpecialTokens(TrainerCallback):
    """Keep the special tokens of the model's settings when training begins.

    Trainer sets them to those of the tokenizer. The released tokenizer ends a text, the released model a turn: other
    engines would not stop where a trained model does.
    """

    def __init__(self, model: Any) -> None:
        settings = (getattr(model, "config", None), getattr(model, "generation_config", None))
        self.kept = [
            (one, name, getattr(one, name))
            for one in settings
            for name in SPECIAL_TOKENS
            if hasattr(one, name)
        ]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for settings, name, value in self.kept:
            setattr(settings, name, value)


class MetricsFile(TrainerCallback):
    """Append each log to a file of JSON lines: ``step`` and the metrics.

    A resumed run first removes the lines of later steps, which it will write again, and an incomplete last line of a
    killed run. A run from the beginning removes all lines. A missing or damaged file is written again from the
    checkpoint's state, which has all logs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        if state.global_step == 0:
            if self.path.exists():
                write_text(self.path, "", remedy="make room and start again")
            return
        try:
            content = self.path.read_text(encoding="utf-8")
            whole = [line for line in content.splitlines(True) if line[-1] == "\n"]
            kept = [line for line in whole if 0 < json.loads(line)["step"] <= state.global_step]
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            echo(
                f"warning: {self.path} is missing or damaged, and is written again from the checkpoint",
                to_stderr=True,
            )
            kept = [_write_line(entry["step"], entry) for entry in state.log_history if entry["step"] > 0]
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
        line = _write_line(state.global_step, logs or {})
        with explain_failed_write(self.path, RESUME_REMEDY), self.path.open("a", encoding="utf-8") as file:
            file.write(line)


def _write_line(step: int, logs: Mapping[str, Any]) -> str:
    return (
        json.dumps({"step": step, **{name: value for name, value in logs.items() if name != "step"}}) + "\n"
    )


class GenerateSamples(TrainerCallback):
    """Generate samples into ``folder/step-N`` before the first step, after each evaluation and at the end.

    Generation draws random numbers; the random state of training is restored afterwards.

    Args:
        generate_into: generates all samples into a folder or, with None, takes part in that and writes nothing.
        send: sends the samples in a folder, which were generated at a step, to other tools. It returns False if the
            tools have not started; then it is called again before the next step.
        is_sharded: whether each process has a part of the model, so that all take part. Otherwise only the main one
            generates.
    """

    def __init__(
        self,
        generate_into: Callable[[Path | None], None],
        folder: Path,
        send: Callable[[Path, int], bool] = lambda folder, step: True,
        *,
        is_sharded: bool = False,
    ) -> None:
        self.generate_into = generate_into
        self.folder = folder
        self.is_sharded = is_sharded
        self.send = send
        self._unsent: list[int] = []
        self._last: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Generate samples of the untrained model, unless the run is resumed. Samples of an earlier run are removed."""
        if state.global_step == 0:
            if state.is_world_process_zero:
                shutil.rmtree(self.folder, ignore_errors=True)
            self._generate(state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._send()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._generate(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._generate(state)

    def _generate(self, state: TrainerState) -> None:
        if state.is_world_process_zero or self.is_sharded:
            self.generate(state.global_step)
        if state.is_world_process_zero:
            if state.global_step != self._last:
                self._last = state.global_step
                self._unsent.append(state.global_step)
            self._send()

    def _send(self) -> None:
        while self._unsent and self.send(self.folder / name_samples(self._unsent[0]), self._unsent[0]):
            self._unsent.pop(0)

    def generate(self, step: int) -> Path:
        """Generate the samples of a step unless they exist, and return their folder.

        If the model is sharded, every process must call this.
        """
        folder = self.folder / name_samples(step)
        processes = find_processes() if self.is_sharded else Processes()
        if processes.share(folder.exists):
            return folder
        with (
            keeping_random_state(),
            new_folder(folder) if processes.is_first else nullcontext() as unfinished,
        ):
            self.generate_into(unfinished)
        return folder
