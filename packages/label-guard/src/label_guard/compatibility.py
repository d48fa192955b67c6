"""Differences between the versions of transformers that the guard supports (4.46 and later). All of them are here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Trainer

# The outputs that Trainer leaves out if the configuration names none: the cache, called `cache` from 5.24 on.
CACHE_OUTPUTS = ["past_key_values", "cache"]


def count_items(get_batch_samples: Callable[..., Any], batches: list[Any], device: Any) -> Any:
    """Return the number of items that Trainer's ``get_batch_samples`` counts in the batches of a step.

    Later versions of transformers take the device as a third argument.
    """
    takes_device = len(inspect.signature(get_batch_samples).parameters) > 2
    arguments = (device,) if takes_device else ()
    return get_batch_samples(iter(batches), len(batches), *arguments)[1]


def counts_in_evaluation(trainer: Trainer) -> bool:
    """Whether this Trainer passes the number of items to the loss in evaluate and predict too; 4.46 does not."""
    return hasattr(trainer, "_get_num_items_in_batch")
