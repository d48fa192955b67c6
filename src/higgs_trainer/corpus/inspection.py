"""Every row and every recording looked at before anything is encoded: what is wrong, and what is worth knowing.

store_rows      the manifest's rows, streamed; process 0
measure_rows    their recordings, each process its share
judge_corpus    what only the whole shows, and everything wrong together; process 0
"""

import functools
import itertools
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from higgs_trainer.audio.files import SAMPLE_RATE_HZ
from higgs_trainer.corpus.measurements import (
    Limits,
    Measurement,
    find_problems,
    measure_recording,
    name_recording,
)
from higgs_trainer.corpus.plausibility import find_duplicates, find_odd_paces, find_own_references
from higgs_trainer.corpus.reference_pairing import pair_references
from higgs_trainer.corpus.work_directory import ROWS, open_table_file
from higgs_trainer.distributed import Processes
from higgs_trainer.errors import AudioError, ManifestError, Problem
from higgs_trainer.files import write_json_lines
from higgs_trainer.manifest.rows import CheckedRow
from higgs_trainer.manifest.text import has_words
from higgs_trainer.manifest.utterance import Utterance, dump_utterance, load_utterance

Progress = Callable[[Iterable[Any], str, int | None], Iterable[Any]]
"""Wraps what is worked through, with a description and how many there are: how a progress bar is drawn."""

PROBLEMS_SHOWN = 1000
REMEMBERED_RECORDINGS = 10_000  # a reference is often that of many rows


def store_rows(checked: Iterable[CheckedRow], folder: Path) -> list[str]:
    """Write rows and problems into the unfinished folder. Returns a note on texts in which nothing is spoken."""
    wordless: list[Problem] = []
    count = 0
    tables = open_table_file(folder / ROWS, new=True)
    with tables:
        for number, row in enumerate(checked):
            if (utterance := row.utterance) is not None:
                tables.execute("INSERT INTO rows VALUES (?, ?)", (number, dump_utterance(utterance)))
                if not has_words(utterance.text):
                    count += 1
                    wordless = wordless or [Problem(utterance.file, utterance.line, "no word", "")]
            add_problems(tables, number, row.problems)
    tables.close()
    return [f"{count} texts contain tags or signs but no word (first: {p.file}:{p.line})" for p in wordless]


def add_problems(tables: sqlite3.Connection, number: int, problems: Iterable[Problem]) -> None:
    tables.executemany(
        "INSERT INTO problems VALUES (?, ?, ?, ?, ?)",
        ((number, str(p.file), p.line, p.what, p.what_to_do) for p in problems),
    )


def iterate_utterances(tables: sqlite3.Connection, processes: Processes) -> Iterator[tuple[int, Utterance]]:
    """This process's share of the rows: every `processes.count`-th."""
    query = "SELECT number, utterance FROM rows WHERE number % ? = ? ORDER BY number"
    for number, text in tables.execute(query, (processes.count, processes.index)):
        yield number, load_utterance(text)


def measure_rows(folder: Path, processes: Processes, limits: Limits, progress: Progress) -> None:
    """Decode the recordings of this process's share of rows, and write measures and problems into its own file."""
    rows = open_table_file(folder / ROWS)
    share = rows.execute(
        "SELECT COUNT(*) FROM rows WHERE number % ? = ?", (processes.count, processes.index)
    ).fetchone()[0]
    tables = open_table_file(recordings_file(folder, processes.index), new=True)
    measure = functools.lru_cache(REMEMBERED_RECORDINGS)(functools.partial(_measure, limits=limits))
    with tables:
        for number, utterance in progress(iterate_utterances(rows, processes), "checking recordings", share):
            _measure_row(tables, number, utterance, measure)
    tables.close()
    rows.close()


def recordings_file(folder: Path, process_index: int) -> Path:
    return folder / f"recordings-{process_index:05d}.sqlite"


def _measure(path: Path, *, limits: Limits) -> tuple[Measurement | None, list[tuple[str, str]]]:
    try:
        recording = measure_recording(path, max_seconds=limits.max_seconds)
    except AudioError as error:
        return None, [(error.what, error.what_to_do)]
    return recording, find_problems(recording, limits)


def _measure_row(
    tables: sqlite3.Connection,
    number: int,
    utterance: Utterance,
    measure: Callable[[Path], tuple[Measurement | None, list[tuple[str, str]]]],
) -> None:
    prompt = json.dumps([utterance.scene, utterance.task, [str(clip.audio) for clip in utterance.clips]])
    clips = [(utterance.recording, utterance.text), *((clip.audio, clip.text) for clip in utterance.clips)]
    for place, (path, text) in enumerate(clips):
        recording, problems = measure(path)
        place_problems = (
            Problem(
                utterance.file,
                utterance.line,
                f"{name_recording(path, utterance.file)} {what}",
                what_to_do,
            )
            for what, what_to_do in problems
        )
        add_problems(tables, number, place_problems)
        if recording is None:
            continue
        values = {
            "number": number,
            "place": place,
            "path": str(path),
            "text": text,
            "language": utterance.language,
            "prompt": prompt,
            "file": str(utterance.file),
            "line": utterance.line,
            **asdict(recording),
        }
        names = ", ".join(values)
        tables.execute(f"INSERT INTO recordings ({names}) VALUES (:{', :'.join(values)})", values)


def judge_corpus(
    folder: Path, processes: Processes, limits: Limits, *, allow_own_reference: bool = False
) -> None:
    """Gather what all processes found, and add what only the whole corpus shows."""
    tables = open_table_file(folder / ROWS)
    with tables:
        for index in range(processes.count):
            part = open_table_file(recordings_file(folder, index))
            for table in ("recordings", "problems"):
                for row in part.execute(f"SELECT * FROM {table}"):
                    tables.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
            part.close()
        found = [*find_odd_paces(tables, limits), *find_duplicates(tables, limits)]
        if not allow_own_reference:
            found += find_own_references(tables)
        for number, problem in found:
            add_problems(tables, number, [problem])
    tables.close()


def check_rejected(folder: Path, max_rejected: int) -> int:
    """How many rows are rejected.

    Raises:
        ManifestError: more than `max_rejected`, or all.
    """
    tables = open_table_file(folder / ROWS)
    (rejected,) = tables.execute("SELECT COUNT(DISTINCT number) FROM problems").fetchone()
    (accepted,) = tables.execute(
        "SELECT COUNT(*) FROM rows WHERE number NOT IN (SELECT number FROM problems)"
    ).fetchone()
    (total,) = tables.execute("SELECT COUNT(*) FROM problems").fetchone()
    query = "SELECT file, line, what, what_to_do FROM problems ORDER BY number, rowid LIMIT ?"
    shown = [Problem(Path(file), *rest) for file, *rest in tables.execute(query, (PROBLEMS_SHOWN,))]
    tables.close()
    if rejected > max_rejected or (rejected and not accepted):
        raise ManifestError(shown, total=total)
    return int(rejected)


def write_rejected(folder: Path, path: Path) -> None:
    """JSON lines of the rejected rows: file, line, and every reason."""
    tables = open_table_file(folder / ROWS)
    query = "SELECT number, file, line, what, what_to_do FROM problems ORDER BY number, rowid"
    grouped = itertools.groupby(tables.execute(query), key=lambda row: row[0])
    write_json_lines(path, (_describe_rejected(list(problems)) for _, problems in grouped))
    tables.close()


def _describe_rejected(problems: list[tuple[int, str, int, str, str]]) -> dict[str, Any]:
    """One row's file, line and reasons, from its problems."""
    reasons = [{"what": what, "what_to_do": what_to_do} for *_, what, what_to_do in problems]
    return {"file": problems[0][1], "line": problems[0][2], "reasons": reasons}


def iterate_accepted(tables: sqlite3.Connection) -> Iterator[tuple[int, Utterance]]:
    """The rows without a problem, in the manifest's order, each with its number."""
    query = (
        "SELECT number, utterance FROM rows WHERE number NOT IN (SELECT number FROM problems) ORDER BY number"
    )
    for number, text in tables.execute(query):
        yield number, load_utterance(text)


def pair_accepted(folder: Path, *, seed: int) -> None:
    """Draw references among the rows that are right, so that nobody is given one that is rejected. Holds all rows."""
    tables = open_table_file(folder / ROWS)
    numbered = list(iterate_accepted(tables))
    paired, problems = pair_references([utterance for _, utterance in numbered], seed=seed)
    by_id = {utterance.utterance_id: utterance for utterance in paired}
    number_of = {utterance.recording: number for number, utterance in numbered}
    unpaired = iter(problems)
    with tables:
        for number, utterance in numbered:
            if utterance.utterance_id not in by_id:
                add_problems(tables, number, [next(unpaired)])
            elif (new := by_id[utterance.utterance_id]) != utterance:
                (reference,) = new.references
                tables.execute(
                    "UPDATE rows SET utterance = ? WHERE number = ?", (dump_utterance(new), number)
                )
                _copy_recording(tables, number_of[reference.audio], number)
    tables.close()


def _copy_recording(tables: sqlite3.Connection, from_number: int, to_number: int) -> None:
    """The target of one row becomes the reference of another; it was measured already."""
    measures = "path, text, language, content_hash, seconds"
    tables.execute(
        f"INSERT INTO recordings (number, place, {measures}) "
        f"SELECT ?, 1, {measures} FROM recordings WHERE number = ? AND place = 0",
        (to_number, from_number),
    )


def find_notes(folder: Path) -> list[str]:
    """What is no mistake but should be known: recordings that were averaged or upsampled, texts without a word."""
    tables = open_table_file(folder / ROWS)
    accepted = "place = 0 AND number NOT IN (SELECT number FROM problems)"
    notes = []
    for condition, what in (
        ("channels > 1", "have two channels, which were averaged"),
        (
            f"sample_rate_hz < {SAMPLE_RATE_HZ}",
            f"have a sample rate below {SAMPLE_RATE_HZ} Hz: resampling cannot restore high frequencies",
        ),
    ):
        count, number = tables.execute(
            f"SELECT COUNT(*), MIN(number) FROM recordings WHERE {accepted} AND {condition}"
        ).fetchone()
        if count:
            query = "SELECT file, line FROM recordings WHERE number = ? AND place = 0"
            file, line = tables.execute(query, (number,)).fetchone()
            notes.append(f"{count} recordings {what} (first: {file}:{line})")
    return notes
