"""Rows, problems and recordings of a corpus in one SQLite file."""

import itertools
import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from higgs_trainer.corpus.measurements import Measurement
from higgs_trainer.errors import Problem
from higgs_trainer.manifest.utterance import Utterance, dump_utterance, load_utterance

# Each run writes the tables again, so that no write needs to wait for the disk.
SCHEMA = """
PRAGMA synchronous = OFF;
PRAGMA journal_mode = MEMORY;
CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, utterance TEXT);
CREATE TABLE IF NOT EXISTS problems (number INTEGER, file TEXT, line INTEGER, what TEXT, what_to_do TEXT, kind TEXT);
CREATE TABLE IF NOT EXISTS held_out (number INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS recordings (
    number INTEGER, place INTEGER, path TEXT, text TEXT, language TEXT, prompt TEXT, file TEXT, line INTEGER,
    content_hash TEXT, seconds REAL, speech_seconds REAL, sample_rate_hz INTEGER, channels INTEGER,
    peak_dbfs REAL, loudness_dbfs REAL, clipped_percent REAL, cancelled INTEGER,
    PRIMARY KEY (number, place)
) WITHOUT ROWID;
"""


class StoredRecording(NamedTuple):
    """A recording of a row, with its measurements.

    Attributes:
        number: the number of the row.
        place: 0 for the target of the row, then the clips of its prompt in order.
        prompt: equal for rows with the same prompt.
        file: the file that contains the row, at ``line``.
    """

    number: int
    place: int
    path: str
    text: str | None
    language: str | None
    prompt: str
    file: str
    line: int
    content_hash: str
    seconds: float
    speech_seconds: float
    sample_rate_hz: int
    channels: int
    peak_dbfs: float
    loudness_dbfs: float


class VoiceCount(NamedTuple):
    """The rows of a speaker in a language, and those of them without a problem. Both names may be None."""

    speaker: str | None
    language: str | None
    rows: int
    usable: int
    usable_seconds: float


COLUMNS = ", ".join(StoredRecording._fields)
ACCEPTED = "number NOT IN (SELECT number FROM problems)"
HELD_OUT = "number IN (SELECT number FROM held_out)"
TARGET = "place = 0"


class CorpusTables:
    """The tables in one file. As a context manager, commit the changes if the block succeeds, and close the file."""

    def __init__(self, path: Path, *, new: bool = False) -> None:
        """Open the tables, and create them if they do not exist.

        Args:
            new: discard the tables that exist.
        """
        if new:
            path.unlink(missing_ok=True)
        self._connection = sqlite3.connect(path)
        self._connection.executescript(SCHEMA)

    def __enter__(self) -> "CorpusTables":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._connection.commit()
        self._connection.close()

    # Rows

    def add_row(self, number: int, utterance: Utterance) -> None:
        """Add a valid row."""
        self._connection.execute("INSERT INTO rows VALUES (?, ?)", (number, dump_utterance(utterance)))

    def replace_row(self, number: int, utterance: Utterance) -> None:
        """Replace a row."""
        values = (dump_utterance(utterance), number)
        self._connection.execute("UPDATE rows SET utterance = ? WHERE number = ?", values)

    def count_rows(self, index: int, count: int) -> int:
        """Count the rows of process ``index`` of ``count``: every ``count``-th row."""
        query = "SELECT COUNT(*) FROM rows WHERE number % ? = ?"
        return int(self._connection.execute(query, (count, index)).fetchone()[0])

    def iterate_rows(self, index: int, count: int) -> Iterator[tuple[int, Utterance]]:
        """Yield the rows of process ``index`` of ``count`` with their numbers."""
        query = "SELECT number, utterance FROM rows WHERE number % ? = ? ORDER BY number"
        for number, text in self._connection.execute(query, (count, index)):
            yield number, load_utterance(text)

    def iterate_accepted(self, *, held_out: bool | None = None) -> Iterator[tuple[int, Utterance]]:
        """Yield the rows without a problem, with their numbers, in the order of the manifest.

        Args:
            held_out: only the rows that are held out, or only the others. None: all.
        """
        side = "" if held_out is None else f" AND ({HELD_OUT}) = {int(held_out)}"
        query = f"SELECT number, utterance FROM rows WHERE {ACCEPTED}{side} ORDER BY number"
        for number, text in self._connection.execute(query):
            yield number, load_utterance(text)

    def count_accepted(self) -> int:
        """Count the rows without a problem."""
        query = f"SELECT COUNT(*) FROM rows WHERE {ACCEPTED}"
        return int(self._connection.execute(query).fetchone()[0])

    def mark_held_out(self, numbers: Iterable[int]) -> None:
        """Mark rows as held out."""
        self._connection.executemany("INSERT INTO held_out VALUES (?)", ((number,) for number in numbers))

    def count_speakers(self) -> dict[str | None, tuple[int, int]]:
        """Count the accepted rows of each speaker: those that are held out, and all."""
        query = (
            f"SELECT json_extract(utterance, '$.speaker'), SUM({HELD_OUT}), COUNT(*) FROM rows WHERE {ACCEPTED} "
            "GROUP BY 1"
        )
        return {speaker: (held, total) for speaker, held, total in self._connection.execute(query)}

    # Problems

    def add_problems(self, number: int, problems: Iterable[Problem]) -> None:
        """Add problems of a row, which reject it."""
        self._connection.executemany(
            "INSERT INTO problems VALUES (?, ?, ?, ?, ?, ?)",
            ((number, str(p.file), p.line, p.what, p.what_to_do, p.kind) for p in problems),
        )

    def count_problems(self) -> int:
        """Count the problems of all rows."""
        return int(self._connection.execute("SELECT COUNT(*) FROM problems").fetchone()[0])

    def count_rejected(self) -> int:
        """Count the rows with a problem."""
        return int(self._connection.execute("SELECT COUNT(DISTINCT number) FROM problems").fetchone()[0])

    def iterate_problems(self) -> Iterator[tuple[int, Problem]]:
        """Yield the problems in the order of the rows, each with the number of its row."""
        query = "SELECT number, file, line, what, what_to_do, kind FROM problems ORDER BY number, rowid"
        for number, file, *words in self._connection.execute(query):
            yield number, Problem(Path(file), *words)

    def group_problems(self) -> Iterator[list[Problem]]:
        """Yield the problems of each rejected row."""
        for _, numbered in itertools.groupby(self.iterate_problems(), key=lambda pair: pair[0]):
            yield [problem for _, problem in numbered]

    # Recordings

    def add_recording(
        self,
        number: int,
        place: int,
        utterance: Utterance,
        path: Path,
        text: str | None,
        measurement: Measurement,
    ) -> None:
        """Add a measured recording: the target of a row (``place`` 0), or a clip of its prompt."""
        clips = [str(clip.audio) for clip in utterance.clips]
        values = {
            "number": number,
            "place": place,
            "path": str(path),
            "text": text,
            "language": utterance.language,
            "prompt": json.dumps([utterance.scene, utterance.task, clips]),
            "file": str(utterance.file),
            "line": utterance.line,
            **asdict(measurement),
        }
        names = ", ".join(values)
        statement = f"INSERT INTO recordings ({names}) VALUES (:{', :'.join(values)})"
        self._connection.execute(statement, values)

    def add_reference(self, number: int, from_number: int) -> None:
        """Add the target of another row, which was measured already, as the reference of a row."""
        copied = "path, text, language, content_hash, seconds"
        self._connection.execute(
            f"INSERT INTO recordings (number, place, {copied}) "
            f"SELECT ?, 1, {copied} FROM recordings WHERE number = ? AND {TARGET}",
            (number, from_number),
        )

    def add_all_from(self, other: "CorpusTables") -> None:
        """Add the recordings and the problems of another file."""
        for table in ("recordings", "problems"):
            for row in other._connection.execute(f"SELECT * FROM {table}"):
                places = ", ".join("?" * len(row))
                self._connection.execute(f"INSERT INTO {table} VALUES ({places})", row)

    def read_recordings(self, number: int) -> list[StoredRecording]:
        """Return the recordings of a row: its target, then the clips of its prompt. Empty if none can be read."""
        return list(self._select("WHERE number = ? ORDER BY place", number))

    def read_recording(self, number: int, place: int) -> StoredRecording | None:
        """Return one recording of a row, or None if it cannot be read."""
        return next(self._select("WHERE number = ? AND place = ?", number, place), None)

    def iterate_targets(self) -> Iterator[StoredRecording]:
        """Yield the targets of all rows in their order."""
        return self._select(f"WHERE {TARGET} ORDER BY number")

    def iterate_audible(self, min_peak_dbfs: float) -> Iterator[StoredRecording]:
        """Yield the recordings that reach this peak."""
        return self._select("WHERE peak_dbfs >= ?", min_peak_dbfs)

    def group_targets_by_content(self, min_peak_dbfs: float) -> Iterator[list[StoredRecording]]:
        """Yield the targets with equal samples that reach this peak together, in the order of their rows."""
        ordered = self._select(
            f"WHERE {TARGET} AND content_hash IS NOT NULL AND peak_dbfs >= ? ORDER BY content_hash, number",
            min_peak_dbfs,
        )
        for _, group in itertools.groupby(ordered, key=lambda recording: recording.content_hash):
            yield list(group)

    def iterate_contents_with_several_texts(self, min_peak_dbfs: float) -> Iterator[StoredRecording]:
        """Yield the recordings of which a clip of a prompt has another text, equal samples together, targets first.

        Empty and silent recordings, which are equal without being copies, do not reach the peak.
        """
        return self._select(
            "WHERE text IS NOT NULL AND peak_dbfs >= ? AND content_hash IN "
            "(SELECT content_hash FROM recordings WHERE text IS NOT NULL "
            "GROUP BY content_hash HAVING COUNT(DISTINCT text) > 1 AND MAX(place) > 0) "
            "ORDER BY content_hash, place > 0, number, place",
            min_peak_dbfs,
        )

    def iterate_target_contents(self) -> Iterator[tuple[int, int, str]]:
        """Yield (number, place, content hash) of the recordings of accepted rows that are the target of one of them."""
        return self._connection.execute(
            f"SELECT number, place, content_hash FROM recordings WHERE {ACCEPTED} AND content_hash IN "
            f"(SELECT content_hash FROM recordings WHERE {TARGET} AND {ACCEPTED})"
        )

    def iterate_own_references(self) -> Iterator[StoredRecording]:
        """Yield the clips of prompts that have the same samples as the target of their row."""
        return self._select(
            "clip WHERE place > 0 AND content_hash = "
            f"(SELECT content_hash FROM recordings WHERE number = clip.number AND {TARGET}) "
            "GROUP BY number, path ORDER BY number, path"
        )

    def iterate_accepted_contents(self) -> Iterator[tuple[str, str, float]]:
        """Yield (content hash, path, seconds) of each distinct recording of accepted rows, the longest first."""
        return self._connection.execute(
            f"SELECT content_hash, MIN(path), seconds FROM recordings WHERE {ACCEPTED} "
            "GROUP BY content_hash ORDER BY seconds DESC, content_hash"
        )

    def count_targets(self) -> tuple[int, float]:
        """Return the number of targets that can be read, and their total seconds."""
        query = f"SELECT COUNT(*), TOTAL(seconds) FROM recordings WHERE {TARGET}"
        count, seconds = self._connection.execute(query).fetchone()
        return count, seconds

    def count_voices(self) -> list[VoiceCount]:
        """Count the rows of each speaker and language, those with the most usable seconds first."""
        is_usable = f"recordings.number IS NOT NULL AND rows.{ACCEPTED}"
        query = (
            "SELECT json_extract(utterance, '$.speaker'), json_extract(utterance, '$.language'), COUNT(*), "
            f"COUNT(CASE WHEN {is_usable} THEN 1 END), TOTAL(CASE WHEN {is_usable} THEN seconds END) "
            f"FROM rows LEFT JOIN recordings ON rows.number = recordings.number AND {TARGET} "
            "GROUP BY 1, 2 ORDER BY 5 DESC, 3 DESC, 1, 2"
        )
        return [VoiceCount(*row) for row in self._connection.execute(query)]

    def count_empty(self) -> int:
        """Count the targets without a sample."""
        query = f"SELECT COUNT(*) FROM recordings WHERE {TARGET} AND seconds = 0"
        return int(self._connection.execute(query).fetchone()[0])

    def count_audio_formats(self) -> list[tuple[int, int, int]]:
        """Return (sample rate, channels, number of targets), the most frequent first."""
        return self._connection.execute(
            f"SELECT sample_rate_hz, channels, COUNT(*) FROM recordings WHERE {TARGET} "
            "GROUP BY 1, 2 ORDER BY 3 DESC"
        ).fetchall()

    def find_averaged(self) -> tuple[int, StoredRecording | None]:
        """Return the number of accepted targets with several channels, and the first of them."""
        return self._find_accepted_targets("channels > ?", 1)

    def find_upsampled(self, sample_rate_hz: int) -> tuple[int, StoredRecording | None]:
        """Return the number of accepted targets with a lower sample rate, and the first of them."""
        return self._find_accepted_targets("sample_rate_hz < ?", sample_rate_hz)

    def _find_accepted_targets(self, condition: str, value: int) -> tuple[int, StoredRecording | None]:
        where = f"WHERE {TARGET} AND {ACCEPTED} AND {condition}"
        query = f"SELECT COUNT(*) FROM recordings {where}"
        (count,) = self._connection.execute(query, (value,)).fetchone()
        return count, next(self._select(f"{where} ORDER BY number LIMIT 1", value), None)

    def _select(self, clauses: str, *values: object) -> Iterator[StoredRecording]:
        rows = self._connection.execute(f"SELECT {COLUMNS} FROM recordings {clauses}", values)
        return map(StoredRecording._make, rows)
