"""Where a key of a batch came from: the dataset, the collator, or code that edited the batch on its way."""

from __future__ import annotations

from typing import Any

from label_guard.contract import read_fields
from label_guard.leak import Injector
from label_guard.provenance import mend_of, mentions, name_function

# transformers' default_data_collator makes `labels` of these columns.
RENAMED = {"labels": ("label", "label_ids")}

# The methods of a trainer that a batch passes.
PASSES = ("get_batch_samples", "training_step", "prediction_step", "_prepare_inputs", "compute_loss")


def find_batch_origin(trainer: Any, key: str, editors: list[str], *, arrived: bool) -> Injector:
    """Tell the collator from the dataset, where that can be seen: the dataset's rows have the key, or they do not.

    ``arrived`` says whether the batch held the key when it came from the loader; ``editors`` are the places on its way
    that mention the key.
    """
    if not arrived:
        origin = (
            " or ".join(editors or _methods_that_mention(trainer, key))
            or "code that edited the batch in place"
        )
        return Injector(origin, "The batch did not hold it when it was loaded")
    training = getattr(trainer.model, "training", False)
    collator = name_function(getattr(trainer.data_collator, "data_collator", trainer.data_collator))
    columns = _columns_of(trainer.train_dataset if training else _eval_dataset(trainer))
    if columns is None:
        return Injector(
            f"already in the batch, from the dataset or the collator {collator}", mend_of("from the dataset")
        )
    if key in columns:
        return Injector(
            f"already in the batch, from the dataset's column {key!r}", mend_of("from the dataset")
        )
    renamed = [name for name in RENAMED.get(key, ()) if name in columns]
    from_column = f" from the dataset's column {renamed[0]!r}" if renamed else ""
    origin = f"already in the batch, from the collator {collator}{from_column}"
    return Injector(origin, mend_of(origin))


def _methods_that_mention(trainer: Any, key: str) -> list[str]:
    """The methods of the trainer's own classes that can have added a key and have returned since."""
    classes = [
        kind
        for kind in type(trainer).__mro__
        if not kind.__module__.startswith(("transformers.", __package__))
    ]
    methods = [vars(kind)[name] for kind in classes for name in PASSES if name in vars(kind)]
    return [name_function(method) for method in methods if mentions(method, key)]


def _columns_of(dataset: Any) -> frozenset[str] | None:
    """The columns of a dataset; None where they cannot be seen without drawing from a stream."""
    names = getattr(dataset, "column_names", None)
    if isinstance(names, (list, tuple)):
        return frozenset(names)
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or not len(dataset):
        return None
    try:
        return frozenset(read_fields(dataset[0]))
    except TypeError:  # rows without named fields
        return None


def _eval_dataset(trainer: Any) -> Any:
    """The dataset that is being evaluated, as Trainer's evaluation loop leaves it for its callbacks."""
    loader = getattr(trainer.callback_handler, "eval_dataloader", None)
    return getattr(loader, "dataset", None)
