"""Stop a run before its last step: on a gradient that is not finite, on SIGTERM, or on Ctrl-C."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from higgs_trainer.errors import Interrupted, LossError, Terminated

LAUNCHER_SECONDS = 5.0
"""The time within which torchrun and accelerate pass Ctrl-C on to their processes."""


class FiniteGradients(TrainerCallback):
    """Raise before the optimizer step if the gradient of a step is not finite.

    With fp16, gradients overflow now and then: the gradient scaler skips the step and lowers its scale. In that case
    the gradient is not checked; a loss that is not finite still stops the run.

    Args:
        utterances: the trainer's list of the utterance ids of a step; cleared here when a step begins.

    Attributes:
        norm: the gradient norm of this step, if clipping has computed it.
    """

    def __init__(self, accelerator: Accelerator, utterances: list[str]) -> None:
        self.accelerator = accelerator
        self.utterances = utterances
        self.norm: Tensor | float | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.utterances.clear()

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        if self.accelerator.scaler is not None or model is None:
            return
        norm, self.norm = self.norm, None
        if norm is None:
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
        # Under FSDP2 the norm of sharded gradients is a DTensor.
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if math.isfinite(norm):
            return
        # Every rank has the same gradient, so every rank reaches this collective call.
        utterances: Sequence[str] = gather_object(list(self.utterances))
        raise LossError(
            f"the gradient's norm is {float(norm)} at step {state.global_step}, before the optimizer step, "
            f"because of one of the utterances {', '.join(utterances)}. "
            "Listen to them, or lower training.learning_rate."
        )


class StopOnRequest(TrainerCallback):
    """After SIGTERM or Ctrl-C, finish the step, save a checkpoint, and end the run with `Terminated` or `Interrupted`.

    A log, an evaluation or a save that is due at that step still happens, in its order, because a resumed run would not
    repeat it.

    Args:
        remedy: how to resume the run, for the message.
    """

    def __init__(self, accelerator: Accelerator, remedy: str) -> None:
        self.accelerator = accelerator
        self.remedy = remedy
        self._requested: signal.Signals | None = None
        self._requested_at = 0.0
        self._agreed: signal.Signals | None = None
        self._is_epoch_over = False

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Treat SIGTERM and Ctrl-C as requests to stop. A second one ends the run where it is, without a checkpoint."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # An ignored Ctrl-C, as after nohup, stays ignored.
        is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        numbers = [signal.SIGTERM] if is_ignored else [signal.SIGTERM, signal.SIGINT]
        before = {number: signal.getsignal(number) for number in numbers}

        def request(number: int, frame: Any) -> None:
            if self._requested is None:
                self.request(signal.Signals(number))
            elif number == signal.SIGINT and self._is_repeated_by_launcher():
                return
            elif callable(handler := before[signal.Signals(number)]):
                handler(number, frame)
            else:
                name = signal.Signals(number).name
                raise Terminated(f"ended by a second {name}, before a checkpoint was saved. {self.remedy}")

        for number in numbers:
            signal.signal(number, request)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def request(self, number: signal.Signals) -> None:
        """Ask the run to stop after its step, because of this signal."""
        self._requested = number
        self._requested_at = time.monotonic()
        if number == signal.SIGINT and self.accelerator.is_main_process:
            _write_at_once("Ctrl-C: finishing this step and saving. Press Ctrl-C again to stop at once.")

    def _is_repeated_by_launcher(self) -> bool:
        """Whether this Ctrl-C is the first one again: torchrun and accelerate pass on what the terminal sent to all."""
        age_seconds = time.monotonic() - self._requested_at
        return "TORCHELASTIC_RUN_ID" in os.environ and age_seconds < LAUNCHER_SECONDS

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._is_epoch_over = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._agreed = self._agree()
        if self._agreed and not _is_last_of_epoch(state):
            control.should_save = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._is_epoch_over = True
        if self._agreed:
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._agreed and (self._is_epoch_over or not _is_last_of_epoch(state)):
            step = state.global_step
            if self._agreed == signal.SIGINT:
                raise Interrupted(f"interrupted after step {step}; saved. {self.remedy}")
            raise Terminated(f"ended by {self._agreed.name} after step {step}; saved. {self.remedy}")

    def _agree(self) -> signal.Signals | None:
        """Return the signal that any rank received. It reaches ranks at different steps; all must save together."""
        if self.accelerator.num_processes == 1:
            return self._requested
        numbers = (signal.SIGTERM, signal.SIGINT)
        received = torch.tensor(
            [float(self._requested == number) for number in numbers], device=self.accelerator.device
        )
        counts = self.accelerator.reduce(received, reduction="sum").tolist()
        return next((number for number, count in zip(numbers, counts, strict=True) if count), None)


def _write_at_once(text: str) -> None:
    """Write a line to stderr from a signal handler, which may have interrupted another write to the same stream."""
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


def _is_last_of_epoch(state: TrainerState) -> bool:
    return float(state.epoch or 0).is_integer()
