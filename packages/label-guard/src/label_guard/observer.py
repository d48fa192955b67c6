"""The observer's part of layers 1 to 4: for a trainer that computes its own loss."""

from __future__ import annotations

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

    A step of a small model takes less than a millisecond, so these methods make few calls and few objects.
    """

    def __init__(self, trainer: LabelGuardMixin, guard: LabelGuard) -> None:
        self._trainer = trainer
        self._guard = guard
        self.drops_count = False
        records = guard.ledger.layers
        self._batches = {layer: records[layer].batches for layer in (1, 2, 3) if records[layer].on}
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
        loaded = list_names(batches[0]) if len(batches) == 1 else frozenset().union(*map(list_names, batches))
        self._guard.step = Step(loaded)

    def start_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Layer 1: start the record of a batch, with the arguments of ``training_step``."""
        guard = self._guard
        model: Any = args[0] if args else kwargs.get("model")
        guard.reattach(model)
        step = guard.step
        # The batches of an optimizer step were loaded together; each has a record of its own.
        if step is None or step.names:
            guard.step = Step(() if step is None else step.loaded)
        self.record(1, args[1] if len(args) > 1 else kwargs.get("inputs"))

    def start_prediction(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Start the record of a batch of evaluate or predict, with the arguments of ``prediction_step``."""
        model: Any = args[0] if args else kwargs.get("model")
        self._guard.reattach(model)
        self._guard.step = Step(list_names(args[1] if len(args) > 1 else kwargs.get("inputs")))

    def record(self, layer: int, batch: Any) -> None:
        """Record the keys of a batch at a layer, if the layer is on."""
        step, batches = self._guard.step, self._batches.get(layer)
        if step is not None and batches is not None:
            names = step.names[layer] = tuple(batch) if type(batch) is dict else list_names(batch)
            batches[names] = batches.get(names, 0) + 1


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


def restore_smoother(trainer: Trainer) -> None:
    """Give a trainer back the label smoother that `let_trainer_divide` replaced."""
    if type(trainer.label_smoother) is SmootherWithoutCount:
        trainer.label_smoother = trainer.label_smoother.smoother
