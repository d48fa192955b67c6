"""Find evaluation data that is also training data: the same folders, the same recordings, the same texts.

A held-out loss on utterances that were trained measures memory. The same texts in other recordings are less harmful,
but a word error rate on them is too good.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute

from higgs_trainer.dataset.prepared import PreparedRows
from higgs_trainer.errors import list_first
from higgs_trainer.manifest.text import identify_text

ROWS_PER_BATCH = 10_000


@dataclass(frozen=True)
class Overlap:
    """What evaluation data and training data have in common.

    Attributes:
        utterances: the number of utterances in the evaluation data.
        folders: the number of its folders that are training data as well, or copies of it.
        recordings: the utterances whose recording is in the training data, by id.
        texts: the utterances whose text is in the training data, by id. Case, punctuation and spaces do not count.
    """

    utterances: int
    folders: int
    recordings: tuple[str, ...]
    texts: tuple[str, ...]

    def describe_recordings(self) -> str:
        """Say how many recordings of the evaluation data are training data."""
        if not self.recordings:
            return f"0 of {self.utterances}"
        count = "1 whole folder" if self.folders == 1 else f"{self.folders} whole folders"
        folders = f", {count}" if self.folders else ""
        return f"{len(self.recordings)} of {self.utterances} ({list_first(self.recordings)}){folders}"

    def describe_texts(self) -> str:
        """Say how many texts of the evaluation data are training data."""
        listed = f" ({list_first(self.texts)})" if self.texts else ""
        return f"{len(self.texts)} of {self.utterances}{listed}"


def find_overlap(train: PreparedRows, held_out: PreparedRows, *, same_folders: int = 0) -> Overlap:
    """Compare evaluation data with training data by content.

    Recordings are the same if their samples are or, where the hash of the samples is not known, their codes.
    """
    ids = held_out.column("utterance_id").to_pylist()
    return Overlap(
        utterances=len(held_out),
        folders=same_folders,
        recordings=tuple(ids[i] for i in _find_recordings(train, held_out)),
        texts=tuple(ids[i] for i in _find_texts(train, held_out)),
    )


def count_same_folders(
    train: Sequence[Path], train_hashes: Sequence[str], held_out: Sequence[Path], hashes: Sequence[str]
) -> int:
    """Count the evaluation folders that are a training folder, also by a link, or have the same content."""
    return sum(
        content in train_hashes or any(os.path.samefile(folder, other) for other in train)
        for folder, content in zip(held_out, hashes, strict=True)
    )


def _find_recordings(train: PreparedRows, held_out: PreparedRows) -> list[int]:
    """Return the positions of the held-out rows whose recording is in the training data."""
    trained, hashes = train.column("content_hash"), held_out.column("content_hash")
    known = pyarrow.compute.is_in(hashes, value_set=trained.combine_chunks().drop_null())
    found = {i for i, is_known in enumerate(known.to_pylist()) if is_known}
    if not trained.null_count and not hashes.null_count:
        return sorted(found)
    # Data that was prepared from codes has no samples.
    num_frames = set(held_out.column("num_frames").to_pylist())
    by_codes: dict[bytes, list[int]] = {}
    for i, digest in _iterate_codes(held_out, num_frames):
        by_codes.setdefault(digest, []).append(i)
    for _, digest in _iterate_codes(train, num_frames):
        found.update(by_codes.get(digest, ()))
    return sorted(found)


def _iterate_codes(rows: PreparedRows, num_frames: set[int]) -> Iterator[tuple[int, bytes]]:
    """Yield the position and the hash of the codes of each row with one of these numbers of frames."""
    codes = rows.column("codes")
    for i, frames in enumerate(rows.column("num_frames").to_pylist()):
        if frames in num_frames:
            yield i, hashlib.sha256(codes[i].values.to_numpy(zero_copy_only=False).tobytes()).digest()


def _find_texts(train: PreparedRows, held_out: PreparedRows) -> list[int]:
    """Return the positions of the held-out rows whose text is in the training data."""
    texts = [identify_text(text) for text in held_out.column("text").to_pylist()]
    wanted, found = set(texts), set()
    column = train.column("text")
    for start in range(0, len(column), ROWS_PER_BATCH):
        found |= wanted.intersection(map(identify_text, column.slice(start, ROWS_PER_BATCH).to_pylist()))
    return [i for i, text in enumerate(texts) if text in found]
