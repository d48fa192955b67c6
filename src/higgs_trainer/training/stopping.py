"""What ends a run before its last step, in time: a gradient that is not finite, a request to end."""

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
    """Stops the run before the optimizer moves where the gradient of a step is not finite.

    With fp16 a gradient that overflows is ordinary: the scaler leaves the step out and goes on with a smaller scale. So
    there nothing is checked here (a loss that is not finite still stops the run).

    Args:
        utterances: the trainer's list of the step's utterance ids, which is emptied here when a step begins.
    """

    def __init__(self, accelerator: Accelerator, utterances: list[str]) -> None:
        self.accelerator = accelerator
        self.utterances = utterances
        self.norm: Tensor | float | None = None
        """Of this step's gradient, where it is known already: clipping computes it."""

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
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of gradients sharded by FSDP2
        if math.isfinite(norm):
            return
        # Every rank has the same gradient, so every rank is here.
        utterances: Sequence[str] = gather_object(list(self.utterances))
        raise LossError(
            f"the gradient's norm is {float(norm)} at step {state.global_step}, before the optimizer moved: one of "
            f"utterances {', '.join(utterances)}"
        )


class EndWhenAsked(TrainerCallback):
    """After a request to end: finishes the step, saves, and ends the run with ``Terminated``.

    What is due at that step still happens, in its order (log, evaluation, save): a resumed run would not make up for
    it.
    """

    def __init__(self, accelerator: Accelerator, how_to_go_on: str) -> None:
        self.accelerator = accelerator
        self.how_to_go_on = how_to_go_on
        self.is_asked = False
        self._is_agreed = False
        self._is_epoch_over = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM for a request."""

        def ask(*_: Any) -> None:
            self.is_asked = True

        before = signal.signal(signal.SIGTERM, ask)
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
            raise Terminated(f"ended by SIGTERM after step {state.global_step}; saved. {self.how_to_go_on}")

    def _agree(self) -> bool:
        """Whether any rank was asked: the signal reaches them at different steps, and all must save together."""
        if self.accelerator.num_processes == 1:
            return self.is_asked
        asked = torch.tensor(float(self.is_asked), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, reduction="sum"))


def _is_last_of_epoch(state: TrainerState) -> bool:
    return float(state.epoch or 0).is_integer()
