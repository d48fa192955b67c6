"""What Trainer does differently in the versions of transformers that the guard supports (4.46 and later).

Names that only some versions use are in the lists of ``signature.py`` and ``batch_source.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Trainer

# The outputs that Trainer leaves out if the configuration names none: the cache, called `cache` from 5.24 on.
CACHE_OUTPUTS = ["past_key_values", "cache"]


def count_items(trainer: Trainer, get_batch_samples: Callable[..., Any], batches: list[Any]) -> Any:
    """Return the number of items that Trainer's ``get_batch_samples`` counts in the batches of a step.

    Later versions of transformers take the device as a third argument. 4.50 also counts where its ``training_step``
    divides the loss by the number of accumulated batches; a loss divided by the count too would be too small.
    """
    if not trainer.model_accepts_loss_kwargs and trainer.compute_loss_func is None:
        return None
    takes_device = len(inspect.signature(get_batch_samples).parameters) > 2
    arguments = (trainer.args.device,) if takes_device else ()
    return get_batch_samples(iter(batches), len(batches), *arguments)[1]


def counts_in_evaluation(trainer: Trainer) -> bool:
    """Whether this Trainer passes the number of items to the loss in evaluate and predict too; 4.46 does not."""
    return hasattr(trainer, "_get_num_items_in_batch")
