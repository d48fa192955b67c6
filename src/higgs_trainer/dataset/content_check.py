"""Check the rows of a prepared dataset: each one in itself, and all of them by the hash of their content."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from higgs_trainer.dataset.content_hash import ContentHash

if TYPE_CHECKING:
    from pyarrow import RecordBatch, Table

ROWS_PER_BATCH = 10_000
REQUIRED = (
    "utterance_id",
    "text",
    "task",
    "codes",
    "num_frames",
    "num_references",
    "context_texts",
    "context_frames",
    "context_codes",
    "duration_seconds",
)
"""Columns in which no value may be missing."""


def find_row_problem(table: "Table", *, num_codebooks: int, codebook_size: int) -> str | None:
    """Return the first row that cannot be a row of `prepare`, with the reason, or None.

    The columns are compared as a whole, several gigabytes a second.
    """
    first = 0
    for batch in table.to_batches(max_chunksize=ROWS_PER_BATCH):
        for what, is_wrong in _ROW_RULES.items():
            wrong = np.flatnonzero(is_wrong(batch, num_codebooks, codebook_size))
            if len(wrong):
                row = int(wrong[0])
                name = batch.column("utterance_id")[row].as_py()
                return f"row {first + row + 1} ({name}) {what}"
        first += len(batch)
    return None


def compute_content_hash(table: "Table", codec_fingerprint: str) -> str:
    """Compute the hash of all rows (`ContentHash`)."""
    content = ContentHash(codec_fingerprint)
    for batch in table.to_batches(max_chunksize=ROWS_PER_BATCH):
        content.add(batch)
    return content.compute()


def _misses_value(batch: "RecordBatch", num_codebooks: int, codebook_size: int) -> Any:
    masks = [batch.column(name).is_null().to_numpy(zero_copy_only=False) for name in REQUIRED]
    return np.logical_or.reduce(masks)


def _has_other_frames(batch: "RecordBatch", num_codebooks: int, codebook_size: int) -> Any:
    num_frames = _read_numbers(batch, "num_frames")
    return (num_frames < 1) | (_read_lengths(batch, "codes") != num_frames * num_codebooks)


def _has_other_context(batch: "RecordBatch", num_codebooks: int, codebook_size: int) -> Any:
    clips = _read_lengths(batch, "context_frames")
    frames = _read_items(batch, "context_frames").astype(np.int64)
    ends = np.cumsum(clips)
    sums = np.concatenate([[0], np.cumsum(frames)])
    total = sums[ends] - sums[ends - clips]
    short = np.concatenate([[0], np.cumsum(frames < 1)])
    return (
        (_read_lengths(batch, "context_codes") != total * num_codebooks)
        | (short[ends] != short[ends - clips])
        | (_read_lengths(batch, "context_texts") != clips)
        | (_read_numbers(batch, "num_references") < 0)
        | (_read_numbers(batch, "num_references") > clips)
    )


def _has_other_codes(batch: "RecordBatch", num_codebooks: int, codebook_size: int) -> Any:
    wrong = np.zeros(len(batch), dtype=bool)
    for name in ("codes", "context_codes"):
        codes = _read_items(batch, name)
        if len(codes) and codes.max() >= codebook_size:
            rows = np.repeat(np.arange(len(batch)), _read_lengths(batch, name))
            wrong[rows[codes >= codebook_size]] = True
    return wrong


def _has_other_numbers(batch: "RecordBatch", num_codebooks: int, codebook_size: int) -> Any:
    seconds = _read_numbers(batch, "duration_seconds")
    rewards = batch.column("reward").fill_null(0).to_numpy(zero_copy_only=False)
    return ~(np.isfinite(seconds) & (seconds > 0) & np.isfinite(rewards))


_ROW_RULES: dict[str, Callable[["RecordBatch", int, int], Any]] = {
    "has a column without a value": _misses_value,
    "has codes of another length than its num_frames says": _has_other_frames,
    "has a context of another length than its context_frames say": _has_other_context,
    "has codes that the codec does not have": _has_other_codes,
    "has a duration or a reward that is not a finite number": _has_other_numbers,
}


def _read_numbers(batch: "RecordBatch", name: str) -> Any:
    return batch.column(name).to_numpy(zero_copy_only=False)


def _read_lengths(batch: "RecordBatch", name: str) -> Any:
    import pyarrow.compute

    return (
        pyarrow.compute.list_value_length(batch.column(name)).to_numpy(zero_copy_only=False).astype(np.int64)
    )


def _read_items(batch: "RecordBatch", name: str) -> Any:
    return batch.column(name).flatten().to_numpy(zero_copy_only=False)
