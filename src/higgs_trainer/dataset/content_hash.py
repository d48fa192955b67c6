"""One hash of the rows of a prepared dataset, computed column by column at the speed of the memory.

It depends on the values and on the order of the rows, not on how Arrow divides them into batches and files. So the hash
of the rows that `prepare` writes is that of the rows that are read, unless something has changed.
"""

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import xxhash

if TYPE_CHECKING:
    from pyarrow import Array, RecordBatch

# Marks the definition below. Earlier versions had another hash, which depended on values that are not stored.
PREFIX = "xxh3:"
LENGTHS, ITEMS = ".lengths", ".items"


class ContentHash:
    """Add the rows batch by batch, then call `compute`."""

    def __init__(self, codec_fingerprint: str) -> None:
        self._codec_fingerprint = codec_fingerprint
        self._digests: defaultdict[str, xxhash.xxh3_128] = defaultdict(xxhash.xxh3_128)

    def add(self, batch: "RecordBatch") -> None:
        """Add a batch of rows with all columns."""
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            self._add_column(name, column)

    def compute(self) -> str:
        """Return the hash of the codec and of all rows that were added."""
        columns = sorted(f"{name} {digest.hexdigest()}" for name, digest in self._digests.items())
        parts = [self._codec_fingerprint, *columns]
        return PREFIX + str(xxhash.xxh3_128_hexdigest("\n".join(parts).encode()))

    def _add_column(self, name: str, column: "Array") -> None:
        """Add a column: the lengths of texts and lists, and what they contain; of numbers, their values."""
        import pyarrow
        import pyarrow.compute

        if pyarrow.types.is_list(column.type):
            self._add_numbers(name + LENGTHS, pyarrow.compute.list_value_length(column))
            self._add_column(name + ITEMS, column.flatten())
        elif pyarrow.types.is_string(column.type):
            self._add_numbers(name + LENGTHS, pyarrow.compute.binary_length(column))
            self._digests[name].update(_read_text(column.drop_null()))
        else:
            if not name.endswith(ITEMS):
                self._digests[f"{name}.valid"].update(_as_bytes(column.is_valid()))
            self._add_numbers(name, column)

    def _add_numbers(self, name: str, numbers: "Array") -> None:
        import pyarrow

        # No length is -1, and other numbers have a mask. No item of a list of codes is missing.
        missing = -1 if name.endswith(LENGTHS) else 0
        filled = numbers.fill_null(pyarrow.scalar(missing, numbers.type)) if numbers.null_count else numbers
        self._digests[name].update(_as_bytes(filled))


def _as_bytes(numbers: "Array") -> memoryview:
    return np.ascontiguousarray(numbers.to_numpy(zero_copy_only=False)).data


def _read_text(texts: "Array") -> memoryview:
    """Return the bytes of all texts, one after another."""
    _, offsets, content = texts.buffers()
    if content is None:
        return memoryview(b"")
    bounds = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return memoryview(content)[bounds[0] : bounds[-1]]
