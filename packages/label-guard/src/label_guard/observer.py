"""The observer's part of layers 1 to 4: for a trainer that computes its own loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from label_guard.step import Step, list_names

if TYPE_CHECKING:
    from transformers import Trainer

    from label_guard.guard import LabelGuard
    from label_guard.mixin import LabelGuardMixin

Stock = Callable[..., Any]


class Observer:
    """Record which keys the batches of a trainer hold, so that layer 5 can say where a key appeared first.

    Each method calls the trainer's own (``stock``) with the very same arguments, and returns its result. Nothing is
    converted, copied, moved or counted, so a run without a leak is the run without the guard.
    """

    def __init__(self, trainer: LabelGuardMixin, guard: LabelGuard) -> None:
        self._trainer = trainer
        self._guard = guard
        self._drops_count = False
        guard.on_stopped = self._stop_counting

    def _stop_counting(self, key: str) -> None:
        """Let the rest of the step do without the count, as every later step does, if the model does not take it."""
        if key == "num_items_in_batch":
            let_trainer_divide(self._trainer)
            self._drops_count = self._trainer.compute_loss_func is None

    def get_batch_samples(self, stock: Stock, *args: Any, **kwargs: Any) -> Any:
        """Take the batches of one optimizer step, and record their keys."""
        self._drops_count = False
        result = stock(*args, **kwargs)
        batches = result[0] if isinstance(result, tuple) and result else ()
        self._guard.step = Step(frozenset().union(*map(list_names, batches)))
        return result

    def set_signature_columns(self, stock: Stock) -> None:
        """Leave the columns of the dataset to the trainer."""
        stock()

    def training_step(self, stock: Stock, *args: Any, **kwargs: Any) -> Any:
        """Layer 1."""
        self._guard.reattach(_find_argument("model", 0, args, kwargs))
        # The batches of an optimizer step were loaded together.
        self._guard.step = Step(frozenset() if self._guard.step is None else self._guard.step.loaded)
        self._record(1, _find_argument("inputs", 1, args, kwargs))
        if self._drops_count:
            args, kwargs = args[:2], {**kwargs, "num_items_in_batch": None}
        return stock(*args, **kwargs)

    def prediction_step(self, stock: Stock, *args: Any, **kwargs: Any) -> Any:
        """Start the record of a batch of evaluate or predict."""
        self._guard.reattach(_find_argument("model", 0, args, kwargs))
        self._guard.step = Step(frozenset(list_names(_find_argument("inputs", 1, args, kwargs))))
        return stock(*args, **kwargs)

    def prepare_inputs(self, stock: Stock, *args: Any, **kwargs: Any) -> Any:
        """Layer 2."""
        prepared = stock(*args, **kwargs)
        self._record(2, prepared)
        return prepared

    def compute_loss(self, stock: Stock, *args: Any, **kwargs: Any) -> Any:
        """Layer 3."""
        self._record(3, _find_argument("inputs", 1, args, kwargs))
        try:
            return stock(*args, **kwargs)
        finally:
            if isinstance(self._trainer.label_smoother, SmootherWithoutCount):
                self._trainer.label_smoother = self._trainer.label_smoother.smoother

    def _record(self, layer: int, batch: Any) -> None:
        if self._guard.step is not None and layer in self._guard.layers:
            names = self._guard.step.names[layer] = list_names(batch)
            self._guard.ledger.record_names(layer, names)


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


def _find_argument(name: str, position: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)
