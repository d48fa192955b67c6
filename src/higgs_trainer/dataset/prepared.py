"""Read a prepared dataset: a `datasets` dataset on disk, with a `dataset_card.json` in the same folder.

On disk the codes of a clip are F*K uint16 numbers, frame after frame. `PreparedRows` returns them as (F, K) tensors.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import ConfigDict, TypeAdapter
from torch import Tensor

from higgs_trainer.audio.codec import Codec
from higgs_trainer.checksums import REMEMBER_FROM_BYTES, forget_hashes, list_files, verify_checksums
from higgs_trainer.dataset.content_check import compute_content_hash, find_row_problem
from higgs_trainer.dataset.content_hash import PREFIX
from higgs_trainer.errors import CheckpointError, DamageError
from higgs_trainer.files import restore_replaced
from higgs_trainer.printable import join_lines
from higgs_trainer.run_folder import CHECKSUMS_FILE

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from pyarrow import ChunkedArray, ListScalar

logger = logging.getLogger(__name__)

CARD_NAME = "dataset_card.json"
REJECTED_NAME = "rejected.jsonl"
TRAIN_NAME, HELD_OUT_NAME = "train", "held_out"
"""The two datasets in a folder that was prepared with rows held out."""
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

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

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
    """Open a prepared dataset, and check that it is as it was written.

    The checksums of all files are verified. So are the rows and the hash of their content, unless the dataset has 1 GiB
    or more; then `verify_prepared` verifies them.

    Raises:
        CheckpointError: the folder is not a prepared dataset.
        DamageError: a file or a row is not as it was written.

    Example:
        ```python
        from higgs_trainer import read_prepared

        dataset = read_prepared("prepared/train")
        print(len(dataset.rows), dataset.rows[0]["text"], dataset.card.hours)
        ```
    """
    return _open(Path(folder), every_row=False)


def verify_prepared(folder: str | Path) -> None:
    """Check all files and all rows of a prepared dataset, also of a large one that was verified before.

    Raises:
        CheckpointError: as for `read_prepared`.
    """
    forget_hashes(Path(folder))
    _open(Path(folder), every_row=True)


def verify_files(folder: Path) -> bool:
    """Check that the files of a prepared dataset are as they were written. Names that start with a dot do not matter.

    Returns:
        False if the dataset has no checksums.

    Raises:
        DamageError: a file is missing, cut, changed or added; names it.
    """
    return verify_checksums(folder, _list_visible, remedy=_advise(folder))


def _list_visible(folder: Path) -> list[str]:
    return [name for name in list_files(folder) if not name.startswith(".")]


def _advise(folder: Path) -> str:
    # A command with another -o would prepare the rows that were held out as well.
    return f"Copy the folder {folder} again, or repeat the higgs-trainer prepare that wrote it, with --overwrite."


def _open(folder: Path, *, every_row: bool) -> PreparedDataset:
    from datasets import load_from_disk

    # A process that was killed while it replaced both datasets of a folder leaves neither.
    for path in (folder.absolute().parent, folder):
        restore_replaced(path)
    remedy = "Create one with higgs-trainer prepare."
    has_checksums = verify_files(folder)
    if not (folder / CARD_NAME).is_file():
        raise CheckpointError(f"{folder} is not a prepared dataset (no {CARD_NAME}). {remedy}")
    try:
        card = TypeAdapter(DatasetCard).validate_json((folder / CARD_NAME).read_bytes())
        dataset = load_from_disk(folder)
        if not has_checksums:
            dataset.data.validate(full=True)
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise CheckpointError(
            f"{folder} is damaged or of another version ({join_lines(error)}). {remedy}"
        ) from error
    if len(dataset) != card.utterances or dataset.features != build_features():
        raise CheckpointError(f"the rows of {folder} do not match its {CARD_NAME}. {remedy}")
    if every_row or not has_checksums or dataset.data.nbytes < REMEMBER_FROM_BYTES:
        _check_rows(folder, dataset, card)
    return PreparedDataset(PreparedRows(dataset, card.num_codebooks), card)


def _check_rows(folder: Path, dataset: "Dataset", card: DatasetCard) -> None:
    """Raise DamageError unless the rows are consistent and are those that were written."""
    table = dataset.data.table
    shape = {"num_codebooks": card.num_codebooks, "codebook_size": card.codebook_size}
    if problem := find_row_problem(table, **shape):
        raise DamageError(f"{folder}: {problem}", _advise(folder))
    if not card.content_hash.startswith(PREFIX):
        logger.warning(
            "%s was prepared by an earlier version, without %s, so a changed row could not be found",
            folder,
            CHECKSUMS_FILE,
        )
    elif compute_content_hash(table, card.codec_fingerprint) != card.content_hash:
        raise DamageError(f"the rows of {folder} have changed since it was prepared", _advise(folder))


def check_codec(card: DatasetCard, codec: Codec) -> None:
    """Raise CheckpointError if another codec than ``codec`` made the codes of the dataset."""
    if card.codec_fingerprint != codec.fingerprint:
        made_by = " at ".join(filter(None, [card.codec_name, card.codec_revision]))
        raise CheckpointError(
            f"{card.manifest} was encoded by the codec {made_by} ({card.codec_fingerprint}), but the model uses "
            f"{codec.name} ({codec.fingerprint}), which would decode these codes to other sounds. "
            "Prepare the data again with --model and the name of the model."
        )
