"""Codes on disk by the content of their recordings: what a run that was killed leaves to the next."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np

CODES_SCHEMA = """
CREATE TABLE IF NOT EXISTS codes (settings TEXT, content_hash TEXT, codes BLOB, PRIMARY KEY (settings, content_hash));
"""


class CodeStore:
    """Codes by the content hash of their recording, made under `settings` (codec and loudness).

    Every process writes a file of its own and reads those of all, also of runs that were killed.
    """

    def __init__(self, folder: Path, settings: str, process_index: int) -> None:
        self.folder = folder
        self.settings = settings
        self._path = folder / f"codes-{process_index:05d}.sqlite"
        self._writer: sqlite3.Connection | None = None
        self._readers: list[sqlite3.Connection] = []
        self.look_again()

    def look_again(self) -> None:
        """Find the files that other processes have made since."""
        connections = [sqlite3.connect(path) for path in sorted(self.folder.glob("codes-*.sqlite"))]
        has_table = (
            "SELECT 1 FROM sqlite_master WHERE name = 'codes'"  # not in a file whose process died at once
        )
        self._readers = [reader for reader in connections if reader.execute(has_table).fetchone()]

    def add(self, hashes: Sequence[str], codes: Sequence[np.ndarray]) -> None:
        """Keep a batch of codes, (F*K,) uint16 each: all of them or, where the process dies meanwhile, none."""
        if self._writer is None:
            self._writer = sqlite3.connect(self._path)
            self._writer.executescript(CODES_SCHEMA)
        rows = [(self.settings, key, values.tobytes()) for key, values in zip(hashes, codes, strict=True)]
        with self._writer:
            self._writer.executemany("INSERT OR IGNORE INTO codes VALUES (?, ?, ?)", rows)

    def __contains__(self, content_hash: str) -> bool:
        return self._find(content_hash) is not None

    def get(self, content_hash: str) -> np.ndarray:
        """The codes of a recording, (F*K,) uint16. Raises KeyError where nobody has encoded it."""
        if (codes := self._find(content_hash)) is None:
            raise KeyError(f"no codes of the recording {content_hash} in {self.folder}")
        return np.frombuffer(codes, dtype=np.uint16)

    def _find(self, content_hash: str) -> bytes | None:
        query = "SELECT codes FROM codes WHERE settings = ? AND content_hash = ?"
        for reader in self._readers:
            if (row := reader.execute(query, (self.settings, content_hash)).fetchone()) is not None:
                return bytes(row[0])
        return None

    def __enter__(self) -> "CodeStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for connection in (*self._readers, *filter(None, [self._writer])):
            connection.close()
        self._readers, self._writer = [], None
