"""Layers 1 to 4 in a Hugging Face ``Trainer``: ``class T(LabelGuardMixin, Trainer)``.

The mixin imports no Trainer (that import pulls in peft and datasets). Where it needs to know what the stock Trainer
does, it asks ``super()``. Not covered: ``nn.DataParallel``, SageMaker model parallel, DeepSpeed sequence parallel.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import nn

from label_guard.contract import Contract, ModelInputs, is_label_like
from label_guard.guard import ALL_LAYERS, LabelGuard
from label_guard.leak import Injector
from label_guard.origin import find_batch_origin
from label_guard.stock import LABELS, compute_stock_loss, detach, find_labels, logits_of, with_labels


class LabelGuardMixin:
    """Five layers of guard for a ``Trainer``. The attributes may be set on the class or, before training, the instance.

    Attributes:
        guard_contract: what the model takes; None reads it from the base model's signature.
        guard_base: the base model, where it cannot be found by itself.
        guard_policy: ``"divert"`` or ``"raise"``.
        guard_layers: the layers that are on.
        guard_expected: targets that a batch is meant to hold; None means those that ``guard_contract`` lists.

    A subclass with a loss of its own overrides ``compute_guarded_loss``, and ``count_targets`` if it counts its targets
    in its own way.
    """

    guard_contract: Contract | None = None
    guard_base: nn.Module | None = None
    guard_policy: str = "divert"
    guard_layers: frozenset[int] = ALL_LAYERS
    guard_expected: frozenset[str] | None = None

    _guard: LabelGuard | None = None
    _settings: tuple[Any, ...] = ()
    _arrived: frozenset[str] = frozenset()
    _last: ModelInputs | None = None

    @property
    def guard(self) -> LabelGuard:
        """The guard of this trainer's model, made when it is first asked for."""
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
        trainer: Any = self
        expected = self.guard_expected
        if expected is None:
            expected = frozenset() if self.guard_contract is None else self.guard_contract.targets
        guard = LabelGuard(
            trainer.model,
            self.guard_contract,
            base=self.guard_base,
            policy=self.guard_policy,
            layers=self.guard_layers,
            expected=expected,
        )
        guard.batch_origin = self._find_batch_origin
        if "num_items_in_batch" not in guard.contract.inputs:
            # Trainer sets this for any forward with **kwargs, a wrapper's too, and then passes the count into it.
            trainer.model_accepts_loss_kwargs = False
        return guard

    def _find_batch_origin(self, key: str, editors: list[str]) -> Injector:
        return find_batch_origin(self, key, editors, arrived=key in self._arrived)

    # What Trainer reads of a batch before layer 1

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, *device: Any
    ) -> tuple[list[Any], Any]:
        """Take the batches of one optimizer step and count their targets, whatever the type of the batches."""
        contract = self.guard.contract
        batches = [contract.flatten(batch) for batch in islice(epoch_iterator, num_batches)]
        self._arrived = frozenset().union(*batches)
        return batches, self.count_targets(batches)

    def count_targets(self, batch_samples: Sequence[Any]) -> Any:
        """The number that a loss over the whole optimizer step is divided by: as the stock Trainer counts, or None."""
        batches = [with_labels(batch) for batch in batch_samples]
        stock = super().get_batch_samples  # type: ignore[misc]
        device = [self.args.device] if len(inspect.signature(stock).parameters) > 2 else []  # type: ignore[attr-defined]
        return stock(iter(batches), len(batches), *device)[1]

    def _set_signature_columns_if_needed(self) -> None:
        """Dataset columns that are kept: those of the contract, which a wrapper's signature does not tell."""
        trainer: Any = self
        if trainer._signature_columns is None:
            contract = self.guard.contract
            columns = contract.inputs | contract.targets | contract.metadata | set(trainer.label_names)
            trainer._signature_columns = sorted(columns | set(LABELS))

    # The layers

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Layer 1: the raw batch, before anything."""
        self.guard.ensure(model)
        self._last = None
        inputs = self._pass(1, inputs)
        return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def _prepare_inputs(self, inputs: Any) -> ModelInputs:
        """Layer 2: train, evaluate and predict all pass here. All three parts move to the device."""
        held = inputs if isinstance(inputs, ModelInputs) else ModelInputs(self.guard.contract.flatten(inputs))
        stock: Any = super()
        prepared = stock._prepare_inputs(dict(held))
        targets = stock._prepare_input(held.targets)
        return self._pass(2, ModelInputs(prepared, targets, held.metadata))

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Layer 3 takes the targets out for the loss, layer 4 looks at what the call will carry; then the loss."""
        inputs = self._prepare_model_inputs(self._pass(3, self._with_diverted(inputs)))
        self._last = None
        with self.guard.diverting_to(inputs.targets):
            loss, outputs = self.compute_guarded_loss(
                model, dict(inputs), inputs.targets, inputs.metadata, num_items_in_batch
            )
        return (loss, outputs) if return_outputs else loss

    def _prepare_model_inputs(self, inputs: ModelInputs) -> ModelInputs:
        """Layer 4: the allow-list, checked once more after the split."""
        inputs = self._pass(4, inputs)
        if 4 in self.guard.layers:
            self.guard.verify(inputs)
        return inputs

    def _pass(self, layer: int, inputs: Any) -> ModelInputs:
        self._last = self.guard.filter(layer, inputs)
        return self._last

    def _with_diverted(self, inputs: Any) -> ModelInputs:
        """The inputs with what earlier layers diverted, though code in between made a plain dict of them."""
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
        """Call the model on its inputs and compute the loss from its outputs and the targets: the hook to override.

        By default: the loss of a Trainer subclass further along; else ``compute_loss_func``'s, else label smoothing's,
        else the one that the model returned. Raises ``ValueError`` where there is none of them.
        """
        trainer: Any = self
        theirs = super().compute_loss  # type: ignore[misc]
        if theirs.__func__.__module__ != "transformers.trainer":
            batch = model_inputs | targets
            return theirs(model, batch, return_outputs=True, num_items_in_batch=num_items_in_batch)
        own_loss = trainer.compute_loss_func is not None or trainer.label_smoother is not None
        # As Trainer does: labels go to one loss only, also where the model names them.
        named = model_inputs.pop("labels", None) if own_loss else None
        if trainer.model_accepts_loss_kwargs and num_items_in_batch is not None:
            model_inputs["num_items_in_batch"] = num_items_in_batch
        outputs = model(**model_inputs)
        labels = find_labels(targets) if named is None else named
        loss = compute_stock_loss(trainer, self.guard.base, outputs, labels, num_items_in_batch)
        if trainer.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self._count_data_ranks()
        return loss, outputs

    def _count_data_ranks(self) -> int:
        trainer: Any = self
        tensor_ranks = trainer.get_tp_size() if hasattr(trainer, "get_tp_size") else 1
        return int(trainer.accelerator.num_processes // tensor_ranks)

    # Evaluate and predict

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """One batch of evaluate or predict: the loss through ``compute_guarded_loss``, the outputs, the targets.

        Stock Trainer calls the model with the whole batch where it believes that there are no labels.
        """
        trainer: Any = self
        self.guard.ensure(model)
        self._last = None
        batch = self.guard.contract.flatten(inputs)
        self._arrived = frozenset(batch)
        theirs = super().prediction_step  # type: ignore[misc]
        if theirs.__func__.__module__ != "transformers.trainer":  # Seq2SeqTrainer's generates
            return theirs(model, batch, prediction_loss_only, ignore_keys=ignore_keys)
        count = self.count_targets([batch]) if hasattr(self, "_get_num_items_in_batch") else None
        prepared = self._prepare_inputs(batch)
        loss = None
        with torch.no_grad(), trainer.compute_loss_context_manager():
            if self._has_loss(prepared):
                loss, outputs = self.compute_loss(
                    model, prepared, return_outputs=True, num_items_in_batch=count
                )
            else:
                outputs = model(**self._prepare_model_inputs(self._pass(3, prepared)))
        targets = prepared.targets if loss is None else self.guard.targets
        labels = self._labels_for_metrics(targets, prepared)
        returned = None if loss is None else loss.detach().mean()
        if prediction_loss_only:
            return returned, None, None
        if ignore_keys is None:
            ignore_keys = getattr(getattr(trainer.model, "config", None), "keys_to_ignore_at_inference", [])
        return returned, logits_of(outputs, loss, ignore_keys), labels

    def _has_loss(self, prepared: ModelInputs) -> bool:
        """Whether a batch can have a loss: it holds labels, or the trainer's own loss is to say what it needs."""
        trainer: Any = self
        labelled = any(is_label_like(key) and prepared[key] is not None for key in prepared)
        overridden = type(self).compute_guarded_loss is not LabelGuardMixin.compute_guarded_loss
        self_supervised = not trainer.label_names and trainer.can_return_loss
        return labelled or bool(prepared.targets) or overridden or self_supervised

    def _labels_for_metrics(self, targets: dict[str, Any], model_inputs: dict[str, Any]) -> Any:
        """What ``compute_metrics`` gets as label_ids: the keys of ``label_names``, or all targets where none is set."""
        trainer: Any = self
        known = {**model_inputs, **targets}
        names = trainer.label_names or [
            key for key in known if is_label_like(key) and key != "num_items_in_batch"
        ]
        if not names or any(known.get(name) is None for name in names):
            return None
        labels = detach(tuple(known[name] for name in names))
        return labels[0] if len(labels) == 1 else labels
