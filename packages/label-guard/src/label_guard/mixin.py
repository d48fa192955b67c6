"""Layers 1 to 4 in a Hugging Face ``Trainer``: ``class GuardedTrainer(LabelGuardMixin, Trainer)``.

The mixin does not import Trainer at run time, because that import loads peft and datasets. Not covered:
``nn.DataParallel``, SageMaker model parallel, DeepSpeed sequence parallel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from label_guard.batch_source import find_batch_source
from label_guard.compatibility import count_items, count_tensor_parallel_ranks, counts_in_evaluation
from label_guard.contract import Contract, ModelInputs, is_label_like
from label_guard.guard import ALL_LAYERS, LabelGuard
from label_guard.leak import KeySource
from label_guard.stock import LABELS, compute_stock_loss, detach, find_labels, rename_labels, select_logits

if TYPE_CHECKING:
    from transformers import Trainer as TrainerBase
else:
    TrainerBase = object


class LabelGuardMixin(TrainerBase):
    """Guard the model of a ``Trainer`` with all five layers.

    A subclass with its own loss overrides ``compute_guarded_loss``, and ``count_targets`` if it counts its targets in
    another way. The attributes can be set on the class or, before training starts, on the instance.

    Attributes:
        guard_contract: what the model takes; None reads it from the base model's signature.
        guard_base: the base model, if it cannot be found automatically.
        guard_policy: ``"divert"`` or ``"raise"``.
        guard_layers: the layers that are on.
        guard_expected: targets that a batch is meant to hold; None means the targets of ``guard_contract``.
    """

    guard_contract: Contract | None = None
    guard_base: nn.Module | None = None
    guard_policy: str = "divert"
    guard_layers: frozenset[int] = ALL_LAYERS
    guard_expected: frozenset[str] | None = None

    # Defined by Trainer.
    _signature_columns: list[str] | None

    _guard: LabelGuard | None = None
    _settings: tuple[Any, ...] = ()
    _loaded: frozenset[str] = frozenset()
    _last: ModelInputs | None = None

    @property
    def guard(self) -> LabelGuard:
        """The guard of this trainer's model, made on first use.

        Raises:
            ValueError: a setting was changed after the guard was made.
        """
        settings = (
            self.guard_contract,
            self.guard_base,
            self.guard_policy,
            self.guard_layers,
            self.guard_expected,
        )
        if self._guard is None:
            self._guard, self._settings = self._build_guard(), settings
        elif settings != self._settings:
            raise ValueError(
                "a setting of the guard was changed after the guard was made: set it before the first step"
            )
        return self._guard

    def _build_guard(self) -> LabelGuard:
        expected = self.guard_expected
        if expected is None:
            expected = frozenset() if self.guard_contract is None else self.guard_contract.targets
        guard = LabelGuard(
            self.model,
            self.guard_contract,
            base=self.guard_base,
            policy=self.guard_policy,
            layers=self.guard_layers,
            expected=expected,
        )
        guard.find_batch_source = self._find_batch_source
        if "num_items_in_batch" not in guard.contract.inputs:
            # Trainer sets this for any forward with **kwargs, also a wrapper's, and then passes the count into it.
            self.model_accepts_loss_kwargs = False
        return guard

    def _find_batch_source(self, key: str, editors: list[str]) -> KeySource:
        return find_batch_source(self, key, editors, loaded=key in self._loaded)

    # What Trainer reads of a batch before layer 1

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, *device: Any
    ) -> tuple[list[Any], Any]:
        """Take the batches of one optimizer step and count their targets, whatever the type of the batches."""
        contract = self.guard.contract
        batches = [contract.flatten(batch) for batch in islice(epoch_iterator, num_batches)]
        self._loaded = frozenset().union(*batches)
        return batches, self.count_targets(batches)

    def count_targets(self, batch_samples: Sequence[Any]) -> Any:
        """Count the targets of the whole optimizer step as Trainer does; None if it does not count them."""
        batches = [rename_labels(batch) for batch in batch_samples]
        return count_items(super().get_batch_samples, batches, self.args.device)

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the dataset columns of the contract, which are not in the signature of a wrapper."""
        if self._signature_columns is None:
            contract = self.guard.contract
            columns = contract.inputs | contract.targets | contract.metadata | set(self.label_names)
            self._signature_columns = sorted(columns | set(LABELS))

    # The layers

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Layer 1: split the batch as it was loaded."""
        self.guard.reattach(model)
        self._last = None
        inputs = self._filter(1, inputs)
        return super().training_step(model, inputs, *args, **kwargs)

    def _prepare_inputs(self, inputs: Any) -> ModelInputs:
        """Layer 2, in train, evaluate and predict: move inputs and targets to the device, then split again."""
        held = inputs if isinstance(inputs, ModelInputs) else ModelInputs(self.guard.contract.flatten(inputs))
        prepared = super()._prepare_inputs(dict(held))
        targets = super()._prepare_input(held.targets)
        return self._filter(2, ModelInputs(prepared, targets, held.metadata))

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Layers 3 and 4: split the batch, check the arguments of the call, then compute the loss."""
        inputs = self._prepare_model_inputs(self._filter(3, self._restore_diverted(inputs)))
        self._last = None
        with self.guard.diverting_to(inputs.targets):
            loss, outputs = self.compute_guarded_loss(
                model, dict(inputs), inputs.targets, inputs.metadata, num_items_in_batch
            )
        return (loss, outputs) if return_outputs else loss

    def _prepare_model_inputs(self, inputs: ModelInputs) -> ModelInputs:
        """Layer 4: split once more, and check the names that the call will carry."""
        inputs = self._filter(4, inputs)
        if 4 in self.guard.layers:
            self.guard.verify(inputs)
        return inputs

    def _filter(self, layer: int, inputs: Any) -> ModelInputs:
        self._last = self.guard.filter(layer, inputs)
        return self._last

    def _restore_diverted(self, inputs: Any) -> ModelInputs:
        """Add what earlier layers diverted, in case code between the layers made a plain dict of the batch."""
        if isinstance(inputs, ModelInputs):
            return inputs
        last = ModelInputs({}) if self._last is None else self._last
        return ModelInputs(self.guard.contract.flatten(inputs), last.targets, last.metadata)

    # The loss

    def compute_guarded_loss(
        self,
        model: nn.Module,
        model_inputs: dict[str, Any],
        targets: dict[str, Any],
        metadata: dict[str, Any],
        num_items_in_batch: Any,
    ) -> tuple[torch.Tensor, Any]:
        """Call the model on its inputs and compute the loss from its outputs and the targets. Override this.

        By default, computes the loss of the Trainer subclass that the mixin guards; or, if that has none of its own,
        the loss of the stock Trainer.

        Raises:
            ValueError: there is no loss: see ``compute_stock_loss``.
        """
        guarded_loss = super().compute_loss
        if guarded_loss.__func__.__module__ != "transformers.trainer":
            batch = model_inputs | targets
            return guarded_loss(model, batch, return_outputs=True, num_items_in_batch=num_items_in_batch)
        has_loss = self.compute_loss_func is not None or self.label_smoother is not None
        # As in Trainer, labels go to one loss only, also if the model takes them.
        own_labels = model_inputs.pop("labels", None) if has_loss else None
        if self.model_accepts_loss_kwargs and num_items_in_batch is not None:
            model_inputs["num_items_in_batch"] = num_items_in_batch
        outputs = model(**model_inputs)
        labels = find_labels(targets) if own_labels is None else own_labels
        loss = compute_stock_loss(self, self.guard.base, outputs, labels, num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self._count_data_ranks()
        return loss, outputs

    def _count_data_ranks(self) -> int:
        return int(self.accelerator.num_processes // count_tensor_parallel_ranks(self))

    # Evaluate and predict

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """Compute the loss, the outputs and the labels for one batch of evaluate or predict.

        Replaces Trainer's own method, which calls the model with the whole batch if it finds no labels in it. The
        method of a Trainer subclass is kept (``Seq2SeqTrainer`` generates in it).
        """
        self.guard.reattach(model)
        self._last = None
        batch = self.guard.contract.flatten(inputs)
        self._loaded = frozenset(batch)
        guarded_step = super().prediction_step
        if guarded_step.__func__.__module__ != "transformers.trainer":
            return guarded_step(model, batch, prediction_loss_only, ignore_keys=ignore_keys)
        count = self.count_targets([batch]) if counts_in_evaluation(self) else None
        prepared = self._prepare_inputs(batch)
        loss = None
        with torch.no_grad(), self.compute_loss_context_manager():
            if self._has_loss(prepared):
                loss, outputs = self.compute_loss(
                    model, prepared, return_outputs=True, num_items_in_batch=count
                )
            else:
                outputs = model(**self._prepare_model_inputs(self._filter(3, prepared)))
        targets = prepared.targets if loss is None else self.guard.targets
        labels = self._select_labels(targets, prepared)
        returned = None if loss is None else loss.detach().mean()
        if prediction_loss_only:
            return returned, None, None
        if ignore_keys is None:
            ignore_keys = getattr(getattr(self.model, "config", None), "keys_to_ignore_at_inference", [])
        return returned, select_logits(outputs, loss, ignore_keys), labels

    def _has_loss(self, prepared: ModelInputs) -> bool:
        """Whether to compute a loss: the batch holds labels, or the trainer's own loss decides what it needs."""
        is_labelled = any(is_label_like(key) and prepared[key] is not None for key in prepared)
        is_overridden = type(self).compute_guarded_loss is not LabelGuardMixin.compute_guarded_loss
        is_self_supervised = not self.label_names and self.can_return_loss
        return is_labelled or bool(prepared.targets) or is_overridden or is_self_supervised

    def _select_labels(self, targets: dict[str, Any], model_inputs: dict[str, Any]) -> Any:
        """Return the ``label_ids`` for ``compute_metrics``: the keys of ``label_names``, or all targets if it is empty.

        None if one of them is missing.
        """
        known = {**model_inputs, **targets}
        names = self.label_names or [
            key for key in known if is_label_like(key) and key != "num_items_in_batch"
        ]
        if not names or any(known.get(name) is None for name in names):
            return None
        labels = detach(tuple(known[name] for name in names))
        return labels[0] if len(labels) == 1 else labels
