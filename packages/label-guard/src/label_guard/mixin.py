"""Layers 1 to 4 in a Hugging Face ``Trainer``: ``class GuardedTrainer(LabelGuardMixin, Trainer)``.

The mixin does not import Trainer at run time, because that import loads peft and datasets. Not covered:
SageMaker model parallel, DeepSpeed sequence parallel.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from label_guard.batch_source import find_batch_source
from label_guard.compatibility import count_items
from label_guard.contract import Contract
from label_guard.guard import ALL_LAYERS, LabelGuard
from label_guard.leak import KeySource
from label_guard.observer import Observer
from label_guard.owner import Owner
from label_guard.step import list_names

if TYPE_CHECKING:
    from transformers import Trainer as TrainerBase
else:
    TrainerBase = object

read_settings = attrgetter("guard_contract", "guard_base", "guard_policy", "guard_layers", "guard_expected")


class LabelGuardMixin(TrainerBase):
    """Guard the model of a ``Trainer``.

    A class that implements ``compute_guarded_loss(model, model_inputs, targets, metadata, num_items_in_batch)``, which
    returns the loss and the outputs, is an *owner*: the layers 1 to 4 split its batches by the contract, and it gets
    the targets. Any other class is an *observer*: its methods get the very objects that they get without the guard, and
    the layers 1 to 4 only record keys. Layer 5 is the same in both.

    The attributes can be set on the class or, before training starts, on the instance.

    Attributes:
        guard_contract: what the model takes; None reads it from the base model's signature.
        guard_base: the base model, if it cannot be found automatically.
        guard_policy: ``"divert"``, ``"raise"`` or ``"watch"``.
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
    _observer: Observer | None = None
    _owner: Owner  # Set with the guard, in the owner role only.

    if TYPE_CHECKING:

        def compute_guarded_loss(
            self,
            model: nn.Module,
            model_inputs: dict[str, Any],
            targets: dict[str, Any],
            metadata: dict[str, Any],
            num_items_in_batch: Any,
        ) -> tuple[torch.Tensor, Any]: ...

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check the class when it is made.

        Raises:
            TypeError: the guard would see nothing, or the loss would get no labels.
        """
        super().__init_subclass__(**kwargs)
        _check_order(cls)
        _check_loss(cls)

    @property
    def guard(self) -> LabelGuard:
        """The guard of this trainer's model, made on first use.

        Raises:
            ValueError: a setting was changed after the guard was made.
        """
        self._check_settings()
        assert self._guard is not None
        return self._guard

    def _check_settings(self) -> Observer | None:
        """Make the guard on first use; later, check that no setting was changed. Returns the observer, if it is one.

        Raises:
            ValueError: a setting was changed after the guard was made.
        """
        settings = read_settings(self)
        if self._guard is None:
            self._guard, self._settings = self._build_guard(), settings
            if _is_owner(type(self)):
                self._owner = Owner(self, self._guard)
            else:
                self._observer = Observer(self, self._guard)
        elif settings != self._settings:
            raise ValueError(
                "a setting of the guard was changed after the guard was made: set it before the first step"
            )
        return self._observer

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
        return guard

    def _find_batch_source(self, key: str, editors: list[Any]) -> KeySource:
        step = self.guard.step
        return find_batch_source(self, key, editors, loaded=None if step is None else key in step.loaded)

    # The layers. An observer's methods only look at what Trainer's own get and return; an owner's replace them. A step
    # of a small model takes less than a millisecond, and each Python function that it calls about a microsecond of it,
    # so these methods call few.

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Take the batches of one optimizer step."""
        observer = self._observer
        if observer is None or read_settings(self) != self._settings:
            observer = self._check_settings()
        if observer is None:
            return self._owner.get_batch_samples(super().get_batch_samples, *args, **kwargs)
        result = super().get_batch_samples(*args, **kwargs)
        observer.start_batches(result)
        return result

    def _set_signature_columns_if_needed(self) -> None:
        """Choose the columns of the dataset that are kept."""
        if self._observer or self._check_settings():
            super()._set_signature_columns_if_needed()
        else:
            self._owner.set_signature_columns(super()._set_signature_columns_if_needed)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Layer 1: the batch as it was loaded."""
        observer = self._observer or self._check_settings()
        if observer is None:
            return self._owner.training_step(super().training_step, *args, **kwargs)
        names = observer.start_step(args[0] if args else kwargs.get("model"))
        inputs = args[1] if len(args) > 1 else kwargs.get("inputs")
        found = names[1] = tuple(inputs) if type(inputs) is dict else list_names(inputs)
        observer.counts[1][found] += 1
        if observer.drops_count:
            args, kwargs = args[:2], {**kwargs, "num_items_in_batch": None}
        return super().training_step(*args, **kwargs)

    def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """Layer 2, in train, evaluate and predict: the batch on the device."""
        observer = self._observer or self._check_settings()
        if observer is None:
            return self._owner.prepare_inputs(super()._prepare_inputs, *args, **kwargs)
        prepared = super()._prepare_inputs(*args, **kwargs)
        found = tuple(prepared) if type(prepared) is dict else list_names(prepared)
        observer.step.names[2] = found
        observer.counts[2][found] += 1
        return prepared

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Layer 3, and in the owner role layer 4: the batch as the loss gets it."""
        observer = self._observer or self._check_settings()
        if observer is None:
            return self._owner.compute_loss(super().compute_loss, *args, **kwargs)
        inputs = args[1] if len(args) > 1 else kwargs.get("inputs")
        found = tuple(inputs) if type(inputs) is dict else list_names(inputs)
        observer.step.names[3] = found
        observer.counts[3][found] += 1
        try:
            return super().compute_loss(*args, **kwargs)
        finally:
            if observer.drops_count:
                observer.restore_smoother()

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Take one batch of evaluate or predict."""
        observer = self._check_settings()
        if observer is None:
            return self._owner.prediction_step(super().prediction_step, *args, **kwargs)
        observer.start_prediction(args, kwargs)
        return super().prediction_step(*args, **kwargs)

    def count_targets(self, batch_samples: Sequence[Any]) -> Any:
        """Count the targets of the whole optimizer step as Trainer does; None if it does not count them.

        Only an owner uses this. Override it to count in another way.
        """
        return count_items(self, super().get_batch_samples, list(batch_samples))


def _is_owner(kind: type) -> bool:
    return hasattr(kind, "compute_guarded_loss")


def _check_order(kind: type) -> None:
    """Check that the guard comes before the trainer, whose methods it must see first."""
    position = kind.__mro__.index(LabelGuardMixin)
    trainers = [base for base in kind.__mro__[:position] if _has_a_layer(base) and not _is_guarded(base)]
    if trainers and not any(map(_has_a_layer, kind.__mro__[position + 1 :])):
        raise TypeError(
            f"{kind.__name__} guards nothing, because {trainers[0].__name__} comes before LabelGuardMixin. Write "
            f"class {kind.__name__}(LabelGuardMixin, {trainers[0].__name__})"
        )


def _is_guarded(kind: type) -> bool:
    return issubclass(kind, LabelGuardMixin)


def _has_a_layer(kind: type) -> bool:
    return any(name in vars(kind) for name in ("training_step", "prediction_step", "compute_loss"))


def _check_loss(kind: type) -> None:
    """Check that an owner does not override ``compute_loss``, which would get no labels."""
    if not _is_owner(kind):
        return
    for base in kind.__mro__[: kind.__mro__.index(LabelGuardMixin)]:
        if "compute_loss" in vars(base):
            raise TypeError(
                f"{base.__name__}.compute_loss would get no labels, because {kind.__name__} implements "
                "compute_guarded_loss, which gets them. Move the code to compute_guarded_loss"
            )
