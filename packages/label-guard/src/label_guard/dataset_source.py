"""Find what may put a key into the rows of a dataset. No row is read: that may move a random state or a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch.utils.data import Dataset

from label_guard.code_reading import Scope, find_method, is_followed, read_variables
from label_guard.suspect import Suspect, judge, judge_scope

# The methods by which a DataLoader gets rows from a dataset.
ROW_METHODS = ("__getitem__", "__getitems__", "__iter__", "__next__")
# Mappings that keep their fields in an attribute `data`, where they are read without running code of the class.
WITH_DATA = ("UserDict", "BatchEncoding", "BatchFeature")
MAX_ROWS = 1000
MAX_PARTS = 50


@dataclass(frozen=True)
class InspectedRows:
    """What is known about a key in the rows of a dataset.

    Attributes:
        has_column: whether a row is known to have the key.
        is_known: whether all columns are known, so that without ``has_column`` no row has the key.
        suspects: the code that makes the rows.
    """

    has_column: bool
    is_known: bool
    suspects: tuple[Suspect, ...] = ()


def inspect_rows(dataset: Any, key: str) -> InspectedRows:
    """Find out whether the rows of a dataset hold a key, and which code may have put it there."""
    has_column, is_known = False, True
    suspects: list[Suspect] = []
    for part in _iterate_parts(dataset):
        code = _find_row_code(part, key)
        columns = _read_columns(part)
        suspects += code
        has_column |= columns is not None and key in columns
        is_known &= columns is not None and not code
    return InspectedRows(has_column, is_known, tuple(suspects))


def _iterate_parts(dataset: Any) -> Iterator[Any]:
    """Iterate over a dataset and the datasets inside it."""
    waiting: list[Any] = [dataset]
    seen: set[int] = set()
    while waiting and len(seen) < MAX_PARTS:
        part = waiting.pop(0)
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        if not _is_table(part) and type(part) not in (list, tuple, dict):
            waiting += _find_inner(part)


def _find_inner(part: Any) -> list[Any]:
    values: list[Any] = []
    for value in read_variables(part).values():
        values += (
            [value] if not isinstance(value, (list, tuple)) or _is_rows(value) else list(value[:MAX_PARTS])
        )
    return [value for value in values if _holds_rows(value)]


def _holds_rows(value: Any) -> bool:
    if isinstance(value, (torch.Tensor, torch.nn.Module, str, bytes, type)):
        return False
    if isinstance(value, Dataset) or _is_table(value) or _is_rows(value) or type(value) is dict:
        return True
    kind = type(value)
    if kind.__module__ == "datasets.iterable_dataset":
        return True
    if "data" in read_variables(value) and kind.__name__ in WITH_DATA:
        return True
    return any(isinstance(find_method(value, name), FunctionType) for name in ROW_METHODS) and is_followed(
        kind.__module__
    )


def _is_rows(value: Any) -> bool:
    """Whether a value is a plain list of rows. Reading it runs no code."""
    return type(value) in (list, tuple) and len(value) > 0 and _read_row(value[0]) is not None


def _read_row(row: Any) -> Iterable[str] | None:
    """Return the names of the fields of a row, without running code of its class; None if it has none."""
    if isinstance(row, dict):
        return list(dict.keys(row))
    if (
        type(row) in (list, tuple, str, int, float)
        or isinstance(row, (torch.Tensor, Dataset))
        or callable(row)
    ):
        return None
    own = read_variables(row)
    data = own.get("data")
    return list(data) if type(data) is dict else (list(own) or None)


def _is_table(part: Any) -> bool:
    """Whether a part is a ``datasets.Dataset``, which says its columns."""
    return any(
        kind.__module__ == "datasets.arrow_dataset" and kind.__name__ == "Dataset"
        for kind in type(part).__mro__
    )


def _read_columns(part: Any) -> frozenset[str] | None:
    """Return the columns of one dataset, or None if they are not known without reading a row."""
    if _is_table(part):
        if _find_transform(part) is not None:
            return None
        shown = read_variables(part).get("_format_columns")
        hides = shown is not None and not read_variables(part).get("_output_all_columns")
        return frozenset((shown or ()) if hides else part.column_names)
    if type(part) in (list, tuple):
        rows = [_read_row(row) for row in part[:MAX_ROWS]]
        return frozenset().union(*(row for row in rows if row is not None))
    if type(part) is dict:
        # The columns of a dataset, by name; whether all of them become fields of a row is not known.
        return frozenset(key for key in part if isinstance(key, str))
    if type(part).__name__ in WITH_DATA:
        return frozenset(read_variables(part).get("data", {}))
    if type(part).__module__ == "datasets.iterable_dataset":
        # Its features, if they are known; each of its steps is a part too.
        features = getattr(read_variables(part).get("_info"), "features", None)
        return frozenset(features or ()) if _find_inner(part) or features else None
    if type(part).__module__.startswith(("torch.", "accelerate.", "transformers.")):
        # Subset, ConcatDataset and the like give the rows of the datasets inside them.
        return frozenset() if _find_inner(part) else None
    return None


def _find_row_code(part: Any, key: str) -> list[Suspect]:
    """Judge the code of one dataset that makes or changes its rows."""
    if _is_table(part):
        transform = _find_transform(part)
        return [] if transform is None else [judge(transform, key, "the dataset's transform")]
    kind = type(part)
    if kind.__module__ == "datasets.iterable_dataset":
        return [judge(function, key, f"the dataset's {label}") for label, function in _find_steps(part)]
    methods = [find_method(part, name) for name in ROW_METHODS]
    found = [
        method for method in methods if isinstance(method, FunctionType) and is_followed(method.__module__)
    ]
    return [judge_scope(Scope.of_function(method, part), key, label="the dataset") for method in found]


def _find_transform(table: Any) -> Any:
    """Return the function of ``with_transform`` or ``set_transform``, or None."""
    own = read_variables(table)
    return own.get("_format_kwargs", {}).get("transform") if own.get("_format_type") == "custom" else None


def _find_steps(step: Any) -> list[tuple[str, Any]]:
    """Return the functions of a step of ``datasets.IterableDataset``."""
    own = read_variables(step)
    if (function := own.get("function")) is not None:
        return [] if type(step).__name__.startswith("Filtered") else [("map function", function)]
    if (generate := own.get("generate_examples_fn")) is None:
        return []
    config = read_variables(getattr(generate, "__self__", None)).get("config")
    generator = read_variables(config).get("generator")
    return [] if generator is None else [("generator", generator)]
