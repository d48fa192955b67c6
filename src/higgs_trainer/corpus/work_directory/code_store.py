"""Store codes on disk by the content of their recordings, so that the next run finds those of a killed run."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SCHEMA = """
CREATE TABLE IF NOT EXISTS codes (settings TEXT, content_hash TEXT, codes BLOB, PRIMARY KEY (settings, content_hash));
"""


def find_code_files(folder: Path) -> list[Path]:
    """Find the files of codes of all processes."""
    return sorted(folder.glob("codes-*.sqlite"))


class CodeStore:
    """Codes (F, K), uint16, by the content hash of their recording.

    Only codes that were made under the same settings (codec and loudness) are found. Each process writes its own file
    and reads the files of all processes, also those of killed runs.
    """

    def __init__(self, folder: Path, settings: str, num_codebooks: int, process_index: int) -> None:
        self.folder = folder
        self.settings = settings
        self.num_codebooks = num_codebooks
        self._path = folder / f"codes-{process_index:05d}.sqlite"
        self._writer: sqlite3.Connection | None = None
        self._readers: list[sqlite3.Connection] = []
        self.refresh()

    def refresh(self) -> None:
        """Open the files that other processes have created since."""
        self._close_readers()
        # A process that was killed immediately leaves a file without a table.
        has_table = "SELECT 1 FROM sqlite_master WHERE name = 'codes'"
        for path in find_code_files(self.folder):
            reader = sqlite3.connect(path)
            if reader.execute(has_table).fetchone():
                self._readers.append(reader)
            else:
                reader.close()

    def add(self, hashes: Sequence[str], codes: Sequence[np.ndarray]) -> None:
        """Store a batch of codes, (F, K) uint16 each, in one transaction."""
        if self._writer is None:
            self._writer = sqlite3.connect(self._path)
            self._writer.executescript(SCHEMA)
        rows = [(self.settings, key, codes_FK.tobytes()) for key, codes_FK in zip(hashes, codes, strict=True)]
        with self._writer:
            self._writer.executemany("INSERT OR IGNORE INTO codes VALUES (?, ?, ?)", rows)

    def count(self) -> int:
        """Count the stored codes, whatever their settings."""
        return sum(reader.execute("SELECT COUNT(*) FROM codes").fetchone()[0] for reader in self._readers)

    def __contains__(self, content_hash: str) -> bool:
        return self._find(content_hash) is not None

    def get(self, content_hash: str) -> np.ndarray:
        """Return the codes of a recording, (F, K) uint16. Raise KeyError if no process has encoded it."""
        if (codes := self._find(content_hash)) is None:
            raise KeyError(f"no codes of the recording {content_hash} in {self.folder}")
        return np.frombuffer(codes, dtype=np.uint16).reshape(-1, self.num_codebooks)

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
        """Close the files of all processes."""
        self._close_readers()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _close_readers(self) -> None:
        for reader in self._readers:
            reader.close()
        self._readers = []
