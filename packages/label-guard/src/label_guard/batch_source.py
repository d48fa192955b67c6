"""Find the source of a key in a batch: the dataset, the collator, or code that edited the batch afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from label_guard.call_source import find_remedy, mentions, name_function
from label_guard.contract import read_fields
from label_guard.leak import KeySource

if TYPE_CHECKING:
    from transformers import Trainer

# transformers' default_data_collator makes `labels` from these columns.
RENAMED = {"labels": ("label", "label_ids")}

# The methods of a trainer through which a batch passes.
BATCH_METHODS = ("get_batch_samples", "training_step", "prediction_step", "_prepare_inputs", "compute_loss")


def find_batch_source(trainer: Trainer, key: str, editors: list[str], *, loaded: bool) -> KeySource:
    """Find the source of a key that a trainer's batch holds.

    The collator and the dataset are distinguished by the dataset's columns, where these can be read.

    Args:
        trainer: the trainer whose batch it is.
        key: the key to explain.
        editors: the functions on the call stack that hold the batch and mention the key.
        loaded: whether the batch held the key when it came from the dataloader.
    """
    if not loaded:
        editors = editors or _find_methods_that_mention(trainer, key)
        name = " or ".join(editors) or "code that edited the batch in place"
        return KeySource(name, "The batch did not hold it when it was loaded")
    collator = name_function(getattr(trainer.data_collator, "data_collator", trainer.data_collator))
    is_training = getattr(trainer.model, "training", False)
    columns = _read_columns(trainer.train_dataset if is_training else _find_eval_dataset(trainer))
    if columns is None:
        name = f"already in the batch, from the dataset or the collator {collator}"
        return KeySource(name, find_remedy("from the dataset"))
    if key in columns:
        name = f"already in the batch, from the dataset's column {key!r}"
        return KeySource(name, find_remedy("from the dataset"))
    renamed = [column for column in RENAMED.get(key, ()) if column in columns]
    from_column = f" from the dataset's column {renamed[0]!r}" if renamed else ""
    name = f"already in the batch, from the collator {collator}{from_column}"
    return KeySource(name, find_remedy(name))


def _find_methods_that_mention(trainer: Trainer, key: str) -> list[str]:
    """Name the methods of the user's trainer classes that mention a key; they may have added it and returned."""
    classes = [
        kind
        for kind in type(trainer).__mro__
        if not kind.__module__.startswith(("transformers.", f"{__package__}."))
    ]
    methods = [vars(kind)[name] for kind in classes for name in BATCH_METHODS if name in vars(kind)]
    return [name_function(method) for method in methods if mentions(method, key)]


def _read_columns(dataset: Any) -> frozenset[str] | None:
    """Return the columns of a dataset, or None if they cannot be read without consuming a stream."""
    names = getattr(dataset, "column_names", None)
    if isinstance(names, (list, tuple)):
        return frozenset(names)
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or not len(dataset):
        return None
    try:
        return frozenset(read_fields(dataset[0]))
    except TypeError:
        # The rows have no named fields.
        return None


def _find_eval_dataset(trainer: Trainer) -> Any:
    """Return the dataset that is being evaluated: Trainer's evaluation loop leaves its dataloader for callbacks."""
    loader = getattr(trainer.callback_handler, "eval_dataloader", None)
    return getattr(loader, "dataset", None)
