"""Stop a run before its last step: on a loss or a gradient that is not finite, on SIGTERM, or on Ctrl-C."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from higgs_trainer.errors import Interrupted, LossError, Terminated

LAUNCHER_SECONDS = 5.0
"""The time within which torchrun and accelerate pass Ctrl-C on to their processes."""


@dataclass(frozen=True)
class BatchLoss:
    """The loss of one micro-batch. The tensors stay on their device until the step ends.

    Attributes:
        loss: a scalar.
        cells: the number of supervised audio cells in the whole step, a scalar.
        text_tokens: the number of supervised text tokens in the whole step, a scalar. None without a text loss.
        left_out: the number of supervised cells of this micro-batch that the loss does not have, a scalar.
        utterances: the utterance ids of the micro-batch.
    """

    loss: Tensor
    cells: Tensor
    text_tokens: Tensor | None
    left_out: Tensor
    utterances: Sequence[str]

    def find_fault(self) -> Tensor:
        """Return a scalar that is 0 if the loss is finite and complete."""
        return self.loss.double() * 0 + self.left_out

    def check(self, step: int) -> None:
        """Raise LossError if the loss is not finite, as it is if nothing is supervised, or not complete."""
        names = ", ".join(self.utterances) or "unknown (the batch names none)"
        if self.left_out:
            raise LossError(
                f"audio_labels has {int(self.left_out)} supervised cells more than the layout of its batch, for the "
                f"utterances {names}. Change labels before the collator, or leave layout out of the batch."
            )
        if torch.isfinite(self.loss):
            return
        if not self.cells:
            raise LossError(
                f"no supervised audio cell in this step, for the utterances {names}. "
                "Check the audio labels of the batch: all of them are -100."
            )
        if self.text_tokens is not None and not self.text_tokens:
            raise LossError(
                f"the weight of the text loss is not 0, but no text token of this step is supervised, for the "
                f"utterances {names}. Set the weight to 0, or put label_ids into the batch."
            )
        raise LossError(
            f"the loss is {self.loss.item()} at step {step}, for the utterances {names}. "
            "Listen to them, or lower training.learning_rate."
        )


@dataclass(frozen=True)
class UnreadStep:
    """A step whose result is on its way to the host.

    Attributes:
        is_bad: whether a loss or the gradient is not finite, in the host's memory once ``arrived`` has happened.
    """

    number: int
    losses: list[BatchLoss]
    norm: Tensor | None
    is_bad: Tensor
    arrived: "torch.cuda.Event | None"

    @classmethod
    def begin(cls, number: int, losses: list[BatchLoss], norm: Tensor | None, is_bad: Tensor) -> "UnreadStep":
        """Start the copy of the result to the host, and return at once."""
        if is_bad.device.type != "cuda":
            return cls(number, losses, norm, is_bad, None)
        on_host = torch.empty((), dtype=torch.bool, pin_memory=True)
        on_host.copy_(is_bad, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return cls(number, losses, norm, on_host, arrived)

    def check(self) -> None:
        """Wait for the result. Raise LossError if a loss or the gradient is not finite."""
        if self.arrived is not None:
            self.arrived.synchronize()
        if not self.is_bad:
            return
        for batch in self.losses:
            batch.check(self.number)
        # Every rank has the same gradient, so every rank reaches this collective call.
        utterances: Sequence[str] = gather_object(
            [name for batch in self.losses for name in batch.utterances]
        )
        norm = math.nan if self.norm is None else float(self.norm)
        raise LossError(
            f"the gradient's norm is {norm} at step {self.number}, before the optimizer step, "
            f"because of one of the utterances {', '.join(utterances)}. "
            "Listen to them, or lower training.learning_rate."
        )


class FiniteSteps(TrainerCallback):
    """Raise before the optimizer step if a loss or the gradient of a step is not finite.

    The losses of a step and the norm of its gradient are read together, once, so that the forward and backward passes
    never wait for a GPU. On a GPU they are read one step late, when they have long been computed. Until then, a fused
    optimizer is told on the GPU to leave the weights as they are; before any other optimizer, the host waits. Nothing
    is logged, evaluated or saved before they are read (`settle`).

    With fp16, gradients overflow now and then: the gradient scaler skips the step and lowers its scale. In that case
    the gradient is not checked; a loss that is not finite still stops the run.

    Attributes:
        losses: the losses of this step's micro-batches.
        norm: the gradient norm of this step, if clipping has computed it.
        reads_late: whether a step is read when the next one has been computed.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.losses: list[BatchLoss] = []
        self.norm: Tensor | float | None = None
        # A fused step of sharded weights was never run with a flag that is not sharded.
        self.reads_late = (
            accelerator.device.type == "cuda" and accelerator.distributed_type != DistributedType.FSDP
        )
        self._unread: UnreadStep | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.losses = []

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        self.settle()
        norm = self._take_norm(model)
        faults = [batch.find_fault() for batch in self.losses]
        if norm is not None:
            norm = torch.as_tensor(norm, dtype=torch.float64, device=self.accelerator.device)
            faults.append(norm * 0)
        if not faults:
            return
        is_bad = torch.stack(faults).ne(0).any()
        self._unread = UnreadStep.begin(state.global_step, self.losses, norm, is_bad)
        fused = getattr(optimizer, "optimizer", optimizer)
        if self.reads_late and getattr(fused, "_step_supports_amp_scaling", False):
            fused.found_inf = is_bad.float()
        else:
            self.settle()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.settle()

    def settle(self) -> None:
        """Read the last step that was not read.

        Raises:
            LossError: a loss or the gradient of that step was not finite. Its update was not applied.
        """
        unread, self._unread = self._unread, None
        if unread is not None:
            unread.check()

    def _take_norm(self, model: nn.Module | None) -> Tensor | float | None:
        """Return the norm of this step's gradient, or None if it is not checked."""
        if self.accelerator.scaler is not None or model is None:
            return None
        norm, self.norm = self.norm, None
        if norm is None:
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
        # Under FSDP2 the norm of sharded gradients is a DTensor.
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


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
        self._received: Tensor | None = None

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
        """Return the signal that any rank received. It reaches ranks at different steps; all must save together.

        With several ranks, the answer is that of the step before.
        """
        if self.accelerator.num_processes == 1:
            return self._requested
        numbers = (signal.SIGTERM, signal.SIGINT)
        received = torch.tensor(
            [float(self._requested == number) for number in numbers], device=self.accelerator.device
        )
        # The sum of the step before has been computed by now, so that reading it does not wait for this step.
        unread, self._received = self._received, self.accelerator.reduce(received, reduction="sum")
        counts = [0.0, 0.0] if unread is None else unread.tolist()
        return next((number for number, count in zip(numbers, counts, strict=True) if count), None)


def _write_at_once(text: str) -> None:
    """Write a line to stderr from a signal handler, which may have interrupted another write to the same stream."""
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


def _is_last_of_epoch(state: TrainerState) -> bool:
    return float(state.epoch or 0).is_integer()
