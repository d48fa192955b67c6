"""Stop a run before its last step: on a gradient that is not finite, or on SIGTERM."""

import math
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from higgs_trainer.errors import LossError, Terminated


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
    """After SIGTERM, finish the step, save a checkpoint, and end the run with ``Terminated``.

    A log, an evaluation or a save that is due at that step still happens, in its order, because a resumed run would not
    repeat it.

    Args:
        remedy: how to resume the run, for the message.
    """

    def __init__(self, accelerator: Accelerator, remedy: str) -> None:
        self.accelerator = accelerator
        self.remedy = remedy
        self.is_requested = False
        self._is_agreed = False
        self._is_epoch_over = False

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Treat SIGTERM as a request to stop. A second one ends the run where it is, without a checkpoint."""

        def request(number: int, frame: Any) -> None:
            if not self.is_requested:
                self.is_requested = True
            elif callable(before):
                before(number, frame)
            else:
                raise Terminated(f"ended by a second SIGTERM, before a checkpoint was saved. {self.remedy}")

        before = signal.signal(signal.SIGTERM, request)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._is_epoch_over = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._is_agreed = self._agree()
        if self._is_agreed and not _is_last_of_epoch(state):
            control.should_save = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._is_epoch_over = True
        if self._is_agreed:
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._is_agreed and (self._is_epoch_over or not _is_last_of_epoch(state)):
            raise Terminated(f"ended by SIGTERM after step {state.global_step}; saved. {self.remedy}")

    def _agree(self) -> bool:
        """Whether any rank received the request, which reaches ranks at different steps; all must save together."""
        if self.accelerator.num_processes == 1:
            return self.is_requested
        requested = torch.tensor(float(self.is_requested), device=self.accelerator.device)
        return bool(self.accelerator.reduce(requested, reduction="sum"))


def _is_last_of_epoch(state: TrainerState) -> bool:
    return float(state.epoch or 0).is_integer()
