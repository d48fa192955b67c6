"""Hook a `GuardedRun` into transformers' Trainer and into accelerate as soon as a script imports them."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

from label_guard.guarded_run import GuardedRun, OnStopped
from label_guard.import_hook import ImportHook


def hook_trainers(run: GuardedRun) -> ImportHook:
    """Guard the models that a Trainer is made with or runs, and the models that an Accelerator prepares."""
    hook = ImportHook(
        {
            "accelerate.accelerator": lambda module: _patch_accelerator(run, module),
            "transformers.trainer": lambda module: _patch_trainer(run, module),
        }
    )
    hook.install()
    return hook


def _patch_trainer(run: GuardedRun, module: ModuleType) -> None:
    def guard_model(trainer: Any, *_: Any) -> None:
        if not _has_mixin(trainer):
            _guard_all(run, [trainer.model], type(trainer).__name__, _make_count_stopper(trainer))

    def guard_current_model(trainer: Any, *_: Any) -> None:
        guard_model(trainer)
        if _has_mixin(trainer):
            run.adopt(trainer.guard, f"{type(trainer.model).__name__} in {type(trainer).__name__}")

    _wrap(module.Trainer, "__init__", after=guard_model)
    # By then the model may have been replaced.
    for name in ("train", "evaluate", "predict"):
        _wrap(module.Trainer, name, before=guard_current_model)


def _patch_accelerator(run: GuardedRun, module: ModuleType) -> None:
    for name in ("prepare", "prepare_model"):
        place = f"Accelerator.{name}"

        def guard_models(_: Any, values: Any, place: str = place) -> None:
            _guard_all(run, values if isinstance(values, tuple) else (values,), place)

        # Before, so that what accelerate puts around the forward stays outermost; after, for what it wraps.
        _wrap(module.Accelerator, name, before=guard_models, after=guard_models)


def _guard_all(run: GuardedRun, values: Any, place: str, on_stopped: OnStopped | None = None) -> None:
    """Guard those values that are models."""
    # Imported here, because the script may set what torch reads when it is imported.
    from torch import nn

    for value in values:
        if isinstance(value, nn.Module):
            run.guard(value, place, on_stopped)


def _wrap(
    kind: type,
    name: str,
    *,
    before: Callable[[Any, tuple[Any, ...]], None] | None = None,
    after: Callable[[Any, Any], None] | None = None,
) -> None:
    """Call functions before and after a method: with its arguments, and with what it returns."""
    method = getattr(kind, name)

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before(self, (*args, *kwargs.values()))
        result = method(self, *args, **kwargs)
        if after is not None:
            after(self, result)
        return result

    setattr(kind, name, wrapped)


def _has_mixin(trainer: Any) -> bool:
    """Whether a trainer guards its model itself."""
    mixin = sys.modules.get("label_guard.mixin")
    return mixin is not None and isinstance(trainer, mixin.LabelGuardMixin)


def _make_count_stopper(trainer: Any) -> OnStopped:
    """Return a function that lets Trainer divide the loss when the number of items is kept out of the model.

    It does not keep the trainer alive, so that the script can free it.
    """
    reference = weakref.ref(trainer)

    def stop_counting(key: str) -> None:
        # Imported here, because the script may set what torch reads when it is imported.
        from label_guard.observer import let_trainer_divide

        current = reference()
        if key == "num_items_in_batch" and current is not None:
            let_trainer_divide(current)

    return stop_counting
