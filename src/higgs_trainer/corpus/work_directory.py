"""The folder in which a dataset grows, `.NAME.unfinished` beside the output, until the dataset is whole.

    lock                    held by the run that works here; it falls with its process
    rows.sqlite             what process 0 read: rows, problems, and in the end everybody's recordings
    recordings-00000.sqlite what process 0 measured, and so on for each process
    codes-00000.sqlite      what process 0 encoded; all that a resumed run keeps
    dataset/                the dataset itself, renamed to the output when it is complete

SQLite, since a commit either is in the file or is not, whenever the process dies, and since a million rows then need no
memory (docs/decisions/unfinished-work.md).
"""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from higgs_trainer.errors import UserError
from higgs_trainer.files import move_into_place

ROWS = "rows.sqlite"
DATASET = "dataset"

SCHEMA = """
CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, utterance TEXT);
CREATE TABLE IF NOT EXISTS problems (number INTEGER, file TEXT, line INTEGER, what TEXT, what_to_do TEXT);
CREATE TABLE IF NOT EXISTS recordings (
    number INTEGER, place INTEGER, path TEXT, text TEXT, language TEXT, prompt TEXT, file TEXT, line INTEGER,
    content_hash TEXT, seconds REAL, speech_seconds REAL, sample_rate_hz INTEGER, channels INTEGER,
    peak_dbfs REAL, loudness_dbfs REAL, clipped_percent REAL, cancelled INTEGER,
    PRIMARY KEY (number, place)
) WITHOUT ROWID;
"""


def unfinished_folder(output: Path) -> Path:
    """Where the dataset that becomes `output` grows."""
    output = output.resolve()
    return output.parent / f".{output.name}.unfinished"


@contextmanager
def lock_unfinished(output: Path) -> Iterator[Path]:
    """Make the unfinished folder and hold it alone. It vanishes at the end unless it holds codes to resume from.

    Raises:
        UserError: another run holds it, or it cannot be made.
    """
    from filelock import FileLock, Timeout

    folder = unfinished_folder(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}); give another --output") from error
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise UserError(
            f"another run is preparing {output}; wait for it, or give another --output"
        ) from error
    try:
        if not (
            folder / "lock"
        ).exists():  # the other run finished between our making the folder and our lock
            raise UserError(
                f"another run has just prepared {output}; look at it, or run again with --overwrite"
            )
        yield folder
    finally:
        if not any(folder.glob("codes-*.sqlite")):
            shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def open_table_file(path: Path, *, new: bool = False) -> sqlite3.Connection:
    """Rows, problems and recordings in one file. They are made anew by each run, so nothing waits for the disk."""
    if new:
        path.unlink(missing_ok=True)
    connection = sqlite3.connect(path)
    connection.executescript("PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY;" + SCHEMA)
    return connection


def publish_dataset(whole: Path, output: Path) -> None:
    """Rename a complete dataset to the output, then delete the codes that a resumed run would have needed."""
    output = output.resolve()
    move_into_place(whole, output)
    for codes in unfinished_folder(output).glob("codes-*.sqlite"):
        codes.unlink()
