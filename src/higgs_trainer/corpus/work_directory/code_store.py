"""Store codes on disk by the content of their recordings, so that the next run finds those of a killed run."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from higgs_trainer.errors import DamageError

# Earlier versions had a table "codes" without checksums. It is not read: the recordings are encoded again.
SCHEMA = """
CREATE TABLE IF NOT EXISTS encoded (
    settings TEXT, content_hash TEXT, codes BLOB, checksum TEXT, PRIMARY KEY (settings, content_hash)
);
"""
# What SQLite says of a file that is whole.
NOT_DAMAGED = ("locked", "full", "readonly", "disk I/O")
NOT_OPENED = "unable to open"


class OpenFile(NamedTuple):
    """An open file of codes."""

    path: Path
    connection: sqlite3.Connection


def find_code_files(folder: Path) -> list[Path]:
    """Find the files of codes of all processes."""
    return sorted(folder.glob("codes-*.sqlite"))


class CodeStore:
    """Codes (F, K), uint16, by the content hash of their recording.

    Only codes that were made under the same settings (codec and loudness) are found. Each process writes its own file
    and reads the files of all processes, also those of killed runs. The codes of each recording have a checksum.

    Every method raises ``DamageError`` if a file or the codes in it are damaged.
    """

    def __init__(self, folder: Path, settings: str, num_codebooks: int, process_index: int) -> None:
        self.folder = folder
        self.settings = settings
        self.num_codebooks = num_codebooks
        self._path = folder / f"codes-{process_index:05d}.sqlite"
        self._writer: sqlite3.Connection | None = None
        self._readers: list[OpenFile] = []
        self.refresh()

    def refresh(self) -> None:
        """Open the files that other processes have created since."""
        self._close_readers()
        # A process that was killed immediately leaves a file without a table.
        has_table = "SELECT 1 FROM sqlite_master WHERE name = 'encoded'"
        for path in find_code_files(self.folder):
            with self._explain_damage(path):
                reader = sqlite3.connect(path)
                if reader.execute(has_table).fetchone():
                    self._readers.append(OpenFile(path, reader))
                else:
                    reader.close()

    def add(self, hashes: Sequence[str], codes: Sequence[np.ndarray]) -> None:
        """Store a batch of codes, (F, K) uint16 each, in one transaction."""
        rows = [self._build_row(key, codes_FK.tobytes()) for key, codes_FK in zip(hashes, codes, strict=True)]
        with self._explain_damage(self._path):
            if self._writer is None:
                self._writer = sqlite3.connect(self._path)
                self._writer.executescript(SCHEMA)
            with self._writer:
                self._writer.executemany("INSERT OR IGNORE INTO encoded VALUES (?, ?, ?, ?)", rows)

    def _build_row(self, content_hash: str, codes: bytes) -> tuple[str, str, bytes, str]:
        return self.settings, content_hash, codes, self._compute_checksum(content_hash, codes)

    def _compute_checksum(self, content_hash: str, codes: bytes) -> str:
        """Compute the checksum of the codes of a recording. Codes of another recording have another one."""
        digest = xxhash.xxh3_128(f"{self.settings}\n{content_hash}\n".encode())
        digest.update(codes)
        return str(digest.hexdigest())

    def count(self) -> int:
        """Count the stored codes, whatever their settings."""
        total = 0
        for path, reader in self._readers:
            with self._explain_damage(path):
                total += reader.execute("SELECT COUNT(*) FROM encoded").fetchone()[0]
        return total

    def __contains__(self, content_hash: str) -> bool:
        return self._find(content_hash) is not None

    def get(self, content_hash: str) -> np.ndarray:
        """Return the codes of a recording, (F, K) uint16. Raise KeyError if no process has encoded it."""
        if (codes := self._find(content_hash)) is None:
            raise KeyError(f"no codes of the recording {content_hash} in {self.folder}")
        return np.frombuffer(codes, dtype=np.uint16).reshape(-1, self.num_codebooks)

    def _find(self, content_hash: str) -> bytes | None:
        query = "SELECT codes, checksum FROM encoded WHERE settings = ? AND content_hash = ?"
        for path, reader in self._readers:
            with self._explain_damage(path):
                row = reader.execute(query, (self.settings, content_hash)).fetchone()
            if row is None:
                continue
            codes, checksum = row
            if not isinstance(codes, bytes) or checksum != self._compute_checksum(content_hash, codes):
                raise DamageError(
                    f"{path}: the codes of the recording {content_hash} have changed since they were written",
                    self._advise(),
                )
            return codes
        return None

    @contextmanager
    def _explain_damage(self, path: Path) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            # SQLite says the same of a folder in place of the file and of too many open files.
            cannot_open = NOT_OPENED in str(error) and not path.is_dir()
            if cannot_open or any(words in str(error) for words in NOT_DAMAGED):
                raise
            raise DamageError(f"{path} is damaged ({error})", self._advise()) from error

    def _advise(self) -> str:
        return f"Remove the folder {self.folder} and run the command again. Its recordings are then encoded again."

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
        for _, reader in self._readers:
            reader.close()
        self._readers = []
