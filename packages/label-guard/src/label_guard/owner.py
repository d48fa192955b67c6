"""The owner's part of layers 1 to 4: for a trainer that implements ``compute_guarded_loss``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from label_guard.compatibility import CACHE_OUTPUTS, counts_in_evaluation
from label_guard.contract import ModelInputs
from label_guard.names import is_label_like
from label_guard.step import Step

if TYPE_CHECKING:
    from label_guard.guard import LabelGuard
    from label_guard.mixin import LabelGuardMixin

Stock = Callable[..., Any]


class Owner:
    """Split the batches of a trainer by the contract, and hand the targets to its loss.

    Each method gets the trainer's own (``stock``) as its first argument.
    """

    def __init__(self, trainer: LabelGuardMixin, guard: LabelGuard) -> None:
        self._trainer = trainer
        self._guard = guard
        self._step = Step()
        # Also raises if the contract cannot be read.
        if "num_items_in_batch" not in guard.contract.inputs:
            # Trainer sets this for any forward with **kwargs, also a wrapper's, and then passes the count into it.
            trainer.model_accepts_loss_kwargs = False

    # What Trainer reads of a batch before layer 1

    def get_batch_samples(
        self, stock: Stock, epoch_iterator: Iterator[Any], num_batches: int, *device: Any
    ) -> tuple[list[Any], Any]:
        """Take the batches of one optimizer step and count their targets, whatever the type of the batches."""
        contract = self._guard.contract
        batches = [contract.flatten(batch) for batch in islice(epoch_iterator, num_batches)]
        self._start(frozenset().union(*batches))
        return batches, self._trainer.count_targets(batches)

    def set_signature_columns(self, stock: Stock) -> None:
        """Keep the dataset columns of the contract too: they are not in the signature of a wrapper."""
        trainer, contract = self._trainer, self._guard.contract
        if trainer._signature_columns is None:
            stock()
            columns = contract.inputs | contract.targets | contract.metadata
            listed: list[str] = trainer._signature_columns or []
            trainer._signature_columns = [*listed, *sorted(columns - set(listed))]

    # The layers

    def training_step(self, stock: Stock, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Layer 1: split the batch as it was loaded."""
        self._guard.reattach(model)
        self._start(self._step.loaded)
        return stock(model, self._filter(1, inputs), *args, **kwargs)

    def prepare_inputs(self, stock: Stock, inputs: Any) -> ModelInputs:
        """Layer 2, in train, evaluate and predict: move inputs and targets to the device, then split again."""
        held = (
            inputs if isinstance(inputs, ModelInputs) else ModelInputs(self._guard.contract.flatten(inputs))
        )
        prepared = stock(dict(held))
        targets = self._trainer._prepare_input(held.targets)
        return self._filter(2, ModelInputs(prepared, targets, held.metadata))

    def compute_loss(
        self,
        stock: Stock,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Layers 3 and 4: split the batch, check the arguments of the call, then compute the loss."""
        inputs = self._prepare_call(self._filter(3, self._restore_diverted(inputs)))
        self._step.split = None
        with self._guard.diverting_to(inputs.targets):
            loss, outputs = self._trainer.compute_guarded_loss(
                model, dict(inputs), inputs.targets, inputs.metadata, num_items_in_batch
            )
        return (loss, outputs) if return_outputs else loss

    def _prepare_call(self, inputs: ModelInputs) -> ModelInputs:
        """Layer 4: split once more, and check the names that the call will carry."""
        inputs = self._filter(4, inputs)
        if 4 in self._guard.layers:
            self._guard.verify(inputs)
        return inputs

    def _start(self, loaded: Collection[str]) -> None:
        self._guard.step = self._step = Step(loaded)

    def _filter(self, layer: int, inputs: Any) -> ModelInputs:
        self._step.split = self._guard.filter(layer, inputs)
        return self._step.split

    def _restore_diverted(self, inputs: Any) -> ModelInputs:
        """Add what earlier layers diverted, in case code between the layers made a plain dict of the batch."""
        if isinstance(inputs, ModelInputs):
            return inputs
        last = ModelInputs({}) if self._step.split is None else self._step.split
        return ModelInputs(self._guard.contract.flatten(inputs), last.targets, last.metadata)

    # Evaluate and predict

    def prediction_step(
        self,
        stock: Stock,
        model: nn.Module,
        inputs: Any,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """Compute the loss, the outputs and the labels for one batch of evaluate or predict.

        Replaces Trainer's own method, which calls the model with the whole batch if it finds no labels in it. The
        method of a Trainer subclass is kept (``Seq2SeqTrainer`` generates in it).
        """
        trainer = self._trainer
        self._guard.reattach(model)
        batch = self._guard.contract.flatten(inputs)
        self._start(frozenset(batch))
        if not _is_stock(stock):
            theirs: tuple[torch.Tensor | None, Any, Any] = stock(
                model, batch, prediction_loss_only, ignore_keys=ignore_keys
            )
            return theirs
        count = trainer.count_targets([batch]) if counts_in_evaluation(trainer) else None
        # Through the trainer, so that a subclass may edit the batch.
        prepared = self._restore_diverted(trainer._prepare_inputs(batch))
        with torch.no_grad(), trainer.compute_loss_context_manager():
            loss, outputs = trainer.compute_loss(
                model, prepared, return_outputs=True, num_items_in_batch=count
            )
        loss = loss.detach().mean()
        if prediction_loss_only:
            return loss, None, None
        if ignore_keys is None:
            config = getattr(trainer.model, "config", None)
            ignore_keys = getattr(config, "keys_to_ignore_at_inference", CACHE_OUTPUTS)
        return loss, _select_logits(outputs, ignore_keys), self._select_labels(prepared)

    def _select_labels(self, prepared: ModelInputs) -> Any:
        """Return the ``label_ids`` for ``compute_metrics``: the keys of ``label_names``, or all targets if it is empty.

        None if one of them is missing.
        """
        known = {**prepared, **self._guard.targets}
        names = self._trainer.label_names or [
            key for key in known if is_label_like(key) and key != "num_items_in_batch"
        ]
        if not names or any(known.get(name) is None for name in names):
            return None
        labels = _detach(tuple(known[name] for name in names))
        return labels[0] if len(labels) == 1 else labels


def _is_stock(method: Stock) -> bool:
    """Whether a bound method is Trainer's own and not a subclass's."""
    return getattr(method, "__module__", "") == "transformers.trainer"


def _select_logits(outputs: Any, ignore_keys: list[str]) -> Any:
    """Return the detached outputs without the loss and the ignored keys, as Trainer gathers them."""
    if isinstance(outputs, dict):
        kept = tuple(value for key, value in outputs.items() if key not in [*ignore_keys, "loss"])
    elif isinstance(outputs, torch.Tensor):
        kept = (outputs,)
    else:
        kept = tuple(outputs)
    kept = _detach(kept)
    return kept[0] if len(kept) == 1 else kept


def _detach(value: Any) -> Any:
    """Detach every tensor in a nested structure of tuples, lists and dicts."""
    if isinstance(value, (tuple, list)):
        return type(value)(_detach(item) for item in value)
    if isinstance(value, dict):
        return {key: _detach(item) for key, item in value.items()}
    return value.detach() if isinstance(value, torch.Tensor) else value
