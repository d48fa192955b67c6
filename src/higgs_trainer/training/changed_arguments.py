"""Apply to a resumed run what Trainer would take from the checkpoint, or forget: changed arguments, early stopping."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerState

KEYS_OF_ARGUMENT = {
    "learning_rate": ("initial_lr",),
    "weight_decay": ("weight_decay",),
    "adam_beta1": ("betas",),
    "adam_beta2": ("betas",),
    "adam_epsilon": ("eps",),
}
"""The keys in an optimizer's parameter groups that an argument decides. The schedule computes "lr"."""


@dataclass(frozen=True)
class PlannedOptimizer:
    """The options of the parameter groups and the base learning rates, as the recipe says them."""

    groups: Sequence[dict[str, Any]]
    base_rates: Sequence[float]


def plan_optimizer(optimizer: Any, scheduler: Any) -> PlannedOptimizer:
    """Read the options of a new optimizer and its scheduler, before the states of a checkpoint overwrite them."""
    options = [
        {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]
    return PlannedOptimizer(options, list(getattr(_unwrap(scheduler), "base_lrs", ())))


def apply_changes(
    optimizer: Any, scheduler: Any, planned: PlannedOptimizer, changed: Collection[str]
) -> None:
    """Put the changed arguments into an optimizer and a scheduler whose states were loaded from a checkpoint.

    The learning rate of the next step is computed from the schedule, which may have another number of steps.
    """
    for group, options in zip(optimizer.param_groups, planned.groups, strict=True):
        for argument in changed:
            keys = [key for key in KEYS_OF_ARGUMENT.get(argument, ()) if key in options]
            group.update({key: options[key] for key in keys})
    schedule = _unwrap(scheduler)
    # The learning rate of other schedules is a part of their state.
    if not isinstance(schedule, LambdaLR):
        return
    if "learning_rate" in changed:
        schedule.base_lrs = list(planned.base_rates)
    rates = [
        base * factor(schedule.last_epoch)
        for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


def _unwrap(scheduler: Any) -> Any:
    """Return the scheduler of torch that accelerate may have wrapped."""
    return getattr(scheduler, "scheduler", scheduler)


def restore_patience(state: TrainerState, callbacks: Sequence[TrainerCallback]) -> None:
    """Let early stopping continue to count where the checkpoint stopped."""
    stored: Any = state.stateful_callbacks.get(EarlyStoppingCallback.__name__, {})
    stored = stored[0] if isinstance(stored, list) else stored
    for callback in callbacks:
        if isinstance(callback, EarlyStoppingCallback):
            counted = stored.get("attributes", {}).get("early_stopping_patience_counter", 0)
            callback.early_stopping_patience_counter = counted
