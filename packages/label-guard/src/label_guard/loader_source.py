"""Find what put a key into the batches of a ``DataLoader``: its collator or its dataset."""

from __future__ import annotations

from types import GeneratorType
from typing import Any

from torch.utils.data import DataLoader

from label_guard.code_reading import Evidence, KeyUse, name_function, read_variables
from label_guard.dataset_source import Rows, inspect_rows
from label_guard.suspect import Suspect, judge

# Collators of transformers that make `labels` from these columns, and only from them.
RENAMED = {"labels": ("label", "label_ids")}
RENAMING = (
    "default_data_collator",
    "torch_default_data_collator",
    "DefaultDataCollator",
    "DataCollatorWithPadding",
)
# The attributes in which wrappers of a DataLoader keep it: accelerate, torch_xla, progress bars.
WRAPPED = ("base_dataloader", "_loader", "iterable", "dataloader")
IN_COLUMN = KeyUse(Evidence.WRITES)


def find_loader(value: Any) -> Any:
    """Return the ``DataLoader`` inside a value, or its iterator, or None. Nothing is iterated."""
    for _ in range(5):
        if isinstance(value, GeneratorType):
            value = _find_in_generator(value)
        own = read_variables(value)
        if "_collate_fn" in own and "_dataset" in own:
            return value
        inner = next((own[name] for name in WRAPPED if name in own), None)
        if inner is None:
            return value if isinstance(value, DataLoader) else None
        value = inner
    return None


def _find_in_generator(generator: GeneratorType[Any, Any, Any]) -> Any:
    """Return what a generator iterates over: the iterator of accelerate's loader, or the loader whose method it is."""
    values = {} if generator.gi_frame is None else generator.gi_frame.f_locals
    return values.get("dataloader_iter", values.get("self"))


def find_loader_suspects(loader: Any, key: str) -> list[Suspect]:
    """Return whom to name for a key in a batch of a ``DataLoader``, or of its iterator."""
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


def _inspect(dataset: Any, key: str, columns: frozenset[str] | None) -> Rows:
    """Inspect the rows as the collator gets them: transformers removes the columns that it does not expect."""
    if columns is not None and key not in columns:
        return Rows(has_column=False, is_known=True)
    return inspect_rows(dataset, key)


def _suspect_rows(rows: Rows, key: str) -> list[Suspect]:
    """Return the code that makes the rows and may have added the key, and the column that is known to hold it."""
    writers = [suspect for suspect in rows.suspects if suspect.evidence == Evidence.WRITES]
    column = [Suspect(f"the dataset's column {key!r}", IN_COLUMN)] if rows.has_column else []
    return column + writers or list(rows.suspects)


def _suspect_renamed(
    dataset: Any, collator: Suspect, rows: Rows, key: str, columns: frozenset[str] | None
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


def _suspect_either(rows: Rows, collator: Suspect, key: str) -> list[Suspect]:
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
