"""The observer's part of layers 1 to 4: for a trainer that computes its own loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from label_guard.step import Step, list_names

if TYPE_CHECKING:
    from transformers import Trainer

    from label_guard.guard import LabelGuard
    from label_guard.mixin import LabelGuardMixin


class Observer:
    """Record which keys the batches of a trainer hold, so that layer 5 can say where a key appeared first.

    The mixin calls the trainer's own methods with the very same arguments, and returns their results. Nothing is
    converted, copied, moved or counted, so a run without a leak is the run without the guard.

    A step of a small model takes less than a millisecond, and a call of a Python function about a microsecond of it, so
    these methods make few calls and keep one record, which each step overwrites.
    """

    def __init__(self, trainer: LabelGuardMixin, guard: LabelGuard) -> None:
        self._trainer = trainer
        self._guard = guard
        self.step = Step()
        self.drops_count = False
        records = guard.ledger.layers
        # A layer that is off counts into a record that is never read.
        self.counts = {
            layer: records[layer].batches if records[layer].on else Counter() for layer in (1, 2, 3)
        }
        guard.on_stopped = self._stop_counting

    def _stop_counting(self, key: str) -> None:
        """Let the rest of the step do without the count, as every later step does, if the model does not take it."""
        if key == "num_items_in_batch":
            let_trainer_divide(self._trainer)
            self.drops_count = self._trainer.compute_loss_func is None

    def start_batches(self, result: Any) -> None:
        """Record the keys of the batches of one optimizer step, as ``get_batch_samples`` returned them."""
        self.drops_count = False
        batches: Any = result[0] if isinstance(result, tuple) and result else ()
        if len(batches) == 1 and type(batches[0]) is dict:
            self.step.loaded = tuple(batches[0])
        else:
            self.step.loaded = frozenset().union(*map(list_names, batches))

    def start_step(self, model: Any) -> dict[int, tuple[str, ...]]:
        """Layer 1: start the record of a batch, with the model of ``training_step``. Returns the record.

        The batches of an optimizer step were loaded together; each has a record of its own.
        """
        guard = self._guard
        is_in_place = model is guard.attached_to
        for variables, forward in guard.attached:
            if variables.get("forward") is not forward:
                is_in_place = False
        if not is_in_place:
            guard.reattach(model)
        guard.step = self.step
        names = self.step.names = {}
        return names

    def start_prediction(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Start the record of a batch of evaluate or predict, with the arguments of ``prediction_step``."""
        model: Any = args[0] if args else kwargs.get("model")
        self._guard.reattach(model)
        step = self._guard.step = self.step
        step.names = {}
        step.loaded = list_names(args[1] if len(args) > 1 else kwargs.get("inputs"))

    def restore_smoother(self) -> None:
        """Give the trainer back the label smoother that `let_trainer_divide` replaced."""
        trainer = self._trainer
        if type(trainer.label_smoother) is SmootherWithoutCount:
            trainer.label_smoother = trainer.label_smoother.smoother


class SmootherWithoutCount:
    """A label smoother that is called without the number of items, as for a model that does not take it."""

    def __init__(self, smoother: Callable[..., Any]) -> None:
        self.smoother = smoother

    def __call__(self, *args: Any, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        return self.smoother(*args, **kwargs)


def let_trainer_divide(trainer: Trainer) -> None:
    """Let Trainer divide the loss, once it is known that the model does not take ``num_items_in_batch``.

    Trainer believes of any forward with ``**kwargs``, also a wrapper's, that it divides its loss. It reads this after
    the forward, so the first step is already divided right.
    """
    trainer.model_accepts_loss_kwargs = False
    smoother = trainer.label_smoother
    is_used = smoother is not None and trainer.compute_loss_func is None
    if is_used and not isinstance(smoother, SmootherWithoutCount):
        trainer.label_smoother = SmootherWithoutCount(smoother)
