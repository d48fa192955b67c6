"""Find what put a key into the batches of a ``DataLoader``: code around it, its collator, or its dataset."""

from __future__ import annotations

from types import FunctionType, GeneratorType
from typing import Any

from torch.utils.data import DataLoader

from label_guard.code_reading import (
    Evidence,
    KeyUse,
    Scope,
    find_method,
    is_followed,
    name_function,
    read_variables,
)
from label_guard.dataset_source import InspectedRows, inspect_rows
from label_guard.suspect import Suspect, judge, judge_scope

# Collators of transformers that make `labels` from these columns, and only from them.
RENAMED = {"labels": ("label", "label_ids")}
RENAMING = (
    "default_data_collator",
    "torch_default_data_collator",
    "DefaultDataCollator",
    "DataCollatorWithPadding",
)
# The attributes in which wrappers of a DataLoader keep it: accelerate, torch_xla, progress bars, and people's own.
WRAPPED = ("base_dataloader", "_loader", "iterable", "dataloader", "loader")
IN_COLUMN = KeyUse(Evidence.WRITES)


def find_loader(value: Any) -> Any:
    """Return a value if batches come from it: a ``DataLoader``, an iterator of one, or an object around one.

    For a generator, that is the object whose ``__iter__`` it runs. Nothing is iterated.
    """
    if isinstance(value, GeneratorType):
        frame = value.gi_frame
        values = {} if frame is None else frame.f_locals
        owner = values.get("self")
        if owner is not None and _find_own_iter(owner) is not None:
            return find_loader(owner)
        value = values.get("dataloader_iter", owner)
    own = read_variables(value)
    is_loader = isinstance(value, DataLoader) or "_collate_fn" in own or _find_inner(value) is not None
    return value if is_loader else None


def _find_inner(loader: Any) -> Any:
    own = read_variables(loader)
    held = [own[name] for name in WRAPPED if own.get(name) is not None and own[name] is not loader]
    return next((inner for value in held if (inner := find_loader(value)) is not None), None)


def _find_own_iter(loader: Any) -> FunctionType | None:
    """Return the ``__iter__`` that a user wrote for an object around a loader, or for a subclass of ``DataLoader``."""
    method = find_method(loader, "__iter__")
    return method if isinstance(method, FunctionType) and is_followed(method.__module__) else None


def find_loader_suspects(loader: Any, key: str) -> list[Suspect]:
    """Return whom to name for a key in the batches of a loader."""
    around = []
    if (method := _find_own_iter(loader)) is not None:
        around = [judge_scope(Scope.of_function(method, loader), key, label="the loader")]
        if around[0].evidence == Evidence.WRITES:
            return around
    inner = _find_inner(loader)
    found = _suspect_loader(loader, key) if inner is None else find_loader_suspects(inner, key)
    return found + [suspect for suspect in around if suspect.evidence]


def _suspect_loader(loader: Any, key: str) -> list[Suspect]:
    """Return whom to name for a key in the batches of a ``DataLoader`` itself, or of its iterator."""
    own = read_variables(loader)
    dataset = own.get("_dataset", own.get("dataset"))
    collate: Any = own.get("_collate_fn", own.get("collate_fn"))
    columns = None
    if type(collate).__name__ == "RemoveColumnsCollator":
        columns = frozenset(collate.signature_columns)
        collate = collate.data_collator
    rows = _inspect(dataset, key, columns)
    collator = judge(collate, key, "the collator")
    module, name = (
        str(getattr(collate, "__module__", "")),
        getattr(collate, "__name__", type(collate).__name__),
    )
    if module.startswith("torch."):
        # torch's default collator keeps the keys of the rows.
        return _suspect_rows(rows, key) or [Suspect("the dataset")]
    if module.startswith("transformers.") and name in RENAMING:
        collator = Suspect(f"the collator {name_function(collate)}", collator.use)
        return _suspect_renamed(dataset, collator, rows, key, columns)
    return _suspect_either(rows, collator, key)


def _inspect(dataset: Any, key: str, columns: frozenset[str] | None) -> InspectedRows:
    """Inspect the rows as the collator gets them: transformers removes the columns that it does not expect."""
    if columns is not None and key not in columns:
        return InspectedRows(has_column=False, is_known=True)
    return inspect_rows(dataset, key)


def _suspect_rows(rows: InspectedRows, key: str) -> list[Suspect]:
    """Return the code that makes the rows and may have added the key, and the column that is known to hold it."""
    writers = [suspect for suspect in rows.suspects if suspect.evidence == Evidence.WRITES]
    column = [Suspect(f"the dataset's column {key!r}", IN_COLUMN)] if rows.has_column else []
    return column + writers or list(rows.suspects)


def _suspect_renamed(
    dataset: Any, collator: Suspect, rows: InspectedRows, key: str, columns: frozenset[str] | None
) -> list[Suspect]:
    """Judge a collator of transformers, which adds ``labels`` only if the rows have one of two other columns."""
    found = [suspect for suspect in _suspect_rows(rows, key) if suspect.evidence == Evidence.WRITES]
    for name in RENAMED.get(key, ()):
        for suspect in _suspect_rows(_inspect(dataset, name, columns), name):
            if suspect.evidence == Evidence.WRITES:
                found.append(Suspect(f"{collator.name} from {suspect.name}", IN_COLUMN))
    if found:
        return found
    return list(rows.suspects) or [Suspect("the dataset"), collator]


def _suspect_either(rows: InspectedRows, collator: Suspect, key: str) -> list[Suspect]:
    """Decide between the dataset and the collator by what is known of the rows and what the collator's code does."""
    suspects = _suspect_rows(rows, key)
    from_rows = [suspect for suspect in suspects if suspect.evidence == Evidence.WRITES]
    adds = collator.evidence >= Evidence.MENTIONS
    if from_rows:
        return [*from_rows, collator] if adds else from_rows
    if rows.is_known:
        return [collator]
    if adds and not collator.use.reads:
        return [collator]
    suspects = suspects or [Suspect("the dataset")]
    if not collator.evidence and not collator.use.reads and any(suspect.evidence for suspect in suspects):
        return suspects
    return [*suspects, collator]
