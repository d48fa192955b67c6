"""Read a prepared dataset: a `datasets` dataset on disk, with a `dataset_card.json` in the same folder.

On disk the codes of a clip are F*K uint16 numbers, frame after frame. `PreparedRows` returns them as (F, K) tensors.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from higgs_trainer.audio.codec import Codec
from higgs_trainer.errors import CheckpointError
from higgs_trainer.files import restore_replaced

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from pyarrow import ChunkedArray, ListScalar

CARD_NAME = "dataset_card.json"
REJECTED_NAME = "rejected.jsonl"
CODE_COLUMNS = ("codes", "num_frames", "context_codes", "context_frames")


@dataclass(frozen=True)
class DatasetCard:
    """The summary of a prepared dataset, and the codec of its codes.

    Attributes:
        codec_fingerprint: a hash of the weights of the codec.
        tasks: the number of rows of each task.
        text_changes: the number of rows with each kind of change to their texts.
        content_hash: a hash of all rows and codes.
        manifest: the name of the data that was prepared.
    """

    codec_name: str
    codec_revision: str | None
    codec_fingerprint: str
    num_codebooks: int
    codebook_size: int
    frames_per_second: float
    loudness_lufs: float | None
    utterances: int
    rejected: int
    tasks: dict[str, int]
    text_changes: dict[str, int]
    hours: float
    content_hash: str
    manifest: str
    higgs_trainer_version: str


def build_features() -> "Features":
    """Build the columns of a prepared dataset.

    The clips that precede the target in the prompt, references first and then earlier turns, are concatenated in
    ``context_codes``. ``context_frames`` and ``context_texts`` have one entry per clip. The columns are flat, because
    nested columns are many times slower to read. ``content_hash`` is a hash of the samples of the target.
    """
    from datasets import Features, Sequence, Value

    text, codes = Value("string"), Sequence(Value("uint16"))
    return Features(
        utterance_id=text,
        text=text,
        speaker=text,
        language=text,
        scene=text,
        task=text,
        codes=codes,
        num_frames=Value("int32"),
        num_references=Value("int32"),
        context_texts=Sequence(text),
        context_frames=Sequence(Value("int32")),
        context_codes=codes,
        duration_seconds=Value("float32"),
        reward=Value("float32"),
        text_changes=Sequence(text),
        content_hash=text,
    )


class PreparedRows:
    """The rows of a prepared dataset, by position.

    A row is a dict of the columns of `build_features`, but with two entries in place of the columns of codes:

    - ``codes_FK``: the codes of the target, long (F, K).
    - ``context_codes``: a list with the codes (F, K) of each clip that precedes the target.

    Rows are read directly from Arrow, because the numpy format of `datasets` takes ten times as long
    (benchmarks/prepare.py).
    """

    def __init__(self, dataset: "Dataset", num_codebooks: int) -> None:
        self.features: Features = dataset.features
        self.num_codebooks = num_codebooks
        self._dataset = dataset
        self._columns = {name: dataset.data.column(name) for name in dataset.column_names}

    def __reduce__(self) -> tuple[Any, ...]:
        # A data loader worker opens the files again instead of receiving copies of the columns.
        return PreparedRows, (self._dataset, self.num_codebooks)

    def __len__(self) -> int:
        return len(self._dataset)

    def column(self, name: str) -> "ChunkedArray":
        """Return one column of all rows, as Arrow holds it."""
        return self._columns[name]

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = {
            name: column[index].as_py() for name, column in self._columns.items() if name not in CODE_COLUMNS
        }
        frames = self._columns["context_frames"][index].as_py()
        row["codes_FK"] = self._read_codes(self._columns["codes"][index])
        row["context_codes"] = list(self._read_codes(self._columns["context_codes"][index]).split(frames))
        return row

    def _read_codes(self, flat: "ListScalar") -> Tensor:
        """Return the stored codes as long (F, K)."""
        codes = flat.values.to_numpy(zero_copy_only=False).astype("int64")
        return torch.from_numpy(codes).view(-1, self.num_codebooks)


def concatenate(sets: Sequence[PreparedRows]) -> PreparedRows:
    """Return the rows of several datasets, one after another. All must have the same number of codebooks."""
    from datasets import concatenate_datasets

    if len(sets) == 1:
        return sets[0]
    return PreparedRows(concatenate_datasets([rows._dataset for rows in sets]), sets[0].num_codebooks)


@dataclass(frozen=True)
class PreparedDataset:
    """An open prepared dataset."""

    rows: PreparedRows
    card: DatasetCard


def read_prepared(folder: str | Path) -> PreparedDataset:
    """Open a prepared dataset.

    Raises:
        CheckpointError: the folder is not a prepared dataset, or it is damaged.
    """
    from datasets import load_from_disk

    folder = Path(folder)
    restore_replaced(folder)
    remedy = f"Create one with: higgs-trainer prepare MANIFEST -o {folder} --codec CODEC"
    if not (folder / CARD_NAME).is_file():
        raise CheckpointError(f"{folder} is not a prepared dataset (no {CARD_NAME}). {remedy}")
    try:
        card = DatasetCard(**json.loads((folder / CARD_NAME).read_text(encoding="utf-8")))
        rows = load_from_disk(folder)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder} is damaged or of another version ({error}). {remedy}") from error
    if len(rows) != card.utterances or rows.features != build_features():
        raise CheckpointError(f"the rows of {folder} do not match its {CARD_NAME}. {remedy}")
    return PreparedDataset(PreparedRows(rows, card.num_codebooks), card)


def check_codec(card: DatasetCard, codec: Codec) -> None:
    """Raise CheckpointError if another codec than ``codec`` made the codes of the dataset."""
    if card.codec_fingerprint != codec.fingerprint:
        made_by = " at ".join(filter(None, [card.codec_name, card.codec_revision]))
        raise CheckpointError(
            f"{card.manifest} was encoded by the codec {made_by} ({card.codec_fingerprint}), but the model uses "
            f"{codec.name} ({codec.fingerprint}), which would decode these codes to other sounds. "
            "Prepare the data again with --model and the name of the model."
        )
