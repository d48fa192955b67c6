"""An example: a prepared row as the model reads it and as the loss compares it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.utils.data import Dataset


@dataclass(frozen=True)
class Example:
    """An encoded utterance.

    Attributes:
        input_ids: token ids (T,), with one placeholder for each column.
        columns_PK: the delayed columns of all clips, the references first.
        targets_PK: the code that the loss expects in each cell; ``IGNORED`` in every cell of a reference.
        is_audio_T: True at the placeholders.
        keep_T: True at the positions whose logits are needed, because the next position's column is supervised.
        utterance_id: the row's name, for messages.
        reward: the reward of the row, passed on to the batch.
    """

    input_ids: Tensor
    columns_PK: Tensor
    targets_PK: Tensor
    is_audio_T: Tensor
    keep_T: Tensor
    utterance_id: str
    reward: float | None = None


class Rows(Protocol):
    """Prepared rows by index: a ``datasets.Dataset`` or anything like it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class ExampleDataset(Dataset[Example]):
    """Map-style dataset of examples: item i is row i, encoded when it is first read and then kept in memory."""

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
