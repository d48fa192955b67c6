"""Prepared rows -> examples: what the model reads and what the loss compares it with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.utils.data import Dataset


@dataclass(frozen=True)
class Example:
    """An encoded utterance.

    ``input_ids`` (T,) with a placeholder for every column; ``columns_PK`` the delayed columns of all clips, reference
    first; ``targets_PK`` what the loss asks of each cell (``IGNORED`` throughout the reference); ``labels`` (T,) text
    targets; ``keep_T`` the positions whose next column is supervised. ``reward`` is the row's own, carried along.
    """

    input_ids: Tensor
    columns_PK: Tensor
    targets_PK: Tensor
    labels: Tensor
    keep_T: Tensor
    utterance_id: str
    duration_seconds: float
    reward: float | None = None


class Rows(Protocol):
    """Prepared rows, by position: a ``datasets.Dataset`` or anything like it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class ExampleDataset(Dataset[Example]):
    """Map-style dataset: item i is row i of a prepared dataset, encoded once and kept (a few kilobytes a clip)."""

    def __init__(self, rows: Rows, encode: Callable[[Mapping[str, Any]], Example]) -> None:
        self.rows = rows
        self.encode = encode
        self._encoded: dict[int, Example] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        if index not in self._encoded:
            self._encoded[index] = self.encode(self.rows[index])
        return self._encoded[index]
