"""Find problems that only the whole corpus shows: implausible transcripts and duplicate recordings."""

import itertools
import math
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from higgs_trainer.corpus.measurements import Limits, name_recording
from higgs_trainer.errors import Problem
from higgs_trainer.manifest.text import count_spoken

FEWEST_ROWS = 30  # of one language, below which nothing is said about its pace
SPREADS = 3.0  # robust standard deviations that are always allowed, in a corpus of uneven pace
MAD_TO_SPREAD = 1.4826  # of a normal distribution


@dataclass(frozen=True)
class Pace:
    """How fast a recording is spoken: `per_second` words or, in a script without spaces, characters."""

    number: int
    place: int
    unit: str
    per_second: float


def find_paces(tables: sqlite3.Connection, limits: Limits) -> dict[tuple[str, str], list[Pace]]:
    """The pace of every recording that has words and is not silent, by language and unit."""
    paces: dict[tuple[str, str], list[Pace]] = defaultdict(list)
    query = "SELECT number, place, text, language, speech_seconds FROM recordings WHERE peak_dbfs >= ?"
    for number, place, text, language, speech_seconds in tables.execute(query, (limits.min_peak_dbfs,)):
        count, unit = count_spoken(text or "")
        if count and speech_seconds > 0:
            paces[language or "", unit].append(Pace(number, place, unit, count / speech_seconds))
    return paces


def find_odd_paces(tables: sqlite3.Connection, limits: Limits) -> Iterator[tuple[int, Problem]]:
    """Rows whose words are spoken impossibly fast or slowly beside the rest of their language: (row's number, problem).

    The middle is the median and the spread the median distance from it, of logarithms, so that the wrong rows do not
    hide one another.
    """
    for paces in find_paces(tables, limits).values():
        if len(paces) < FEWEST_ROWS:
            continue
        logs = np.log([pace.per_second for pace in paces])
        median = float(np.median(logs))
        spread = MAD_TO_SPREAD * float(np.median(np.abs(logs - median)))
        allowed = max(math.log(limits.max_pace_factor), SPREADS * spread)
        for pace, distance in zip(paces, logs - median, strict=True):
            if abs(distance) > allowed:
                yield pace.number, _describe_pace(tables, pace, math.exp(median))


def _describe_pace(tables: sqlite3.Connection, pace: Pace, usual: float) -> Problem:
    query = "SELECT path, file, line, speech_seconds FROM recordings WHERE number = ? AND place = ?"
    path, file, line, speech_seconds = tables.execute(query, (pace.number, pace.place)).fetchone()
    count = round(pace.per_second * speech_seconds)
    what = (
        f"{name_recording(path, file)} has {speech_seconds:.1f} s of speech for {count} {pace.unit}: "
        f"{pace.per_second:.1f} per second, against {usual:.1f} in the corpus"
    )
    return Problem(
        Path(file), line, what, "Check that this is its transcript. Correct it, or raise --max-pace-factor."
    )


def find_own_references(tables: sqlite3.Connection) -> Iterator[tuple[int, Problem]]:
    """Rows whose reference or earlier turn is their own recording in another file: (row's number, problem).

    Copies byte for byte are found earlier, when the row is read.
    """
    query = """
        SELECT DISTINCT target.number, clip.path, target.file, target.line FROM recordings target
        JOIN recordings clip ON clip.number = target.number AND clip.place > 0
        WHERE target.place = 0 AND clip.content_hash = target.content_hash
    """
    for number, path, file, line in tables.execute(query):
        what = f"{path}, a reference or an earlier turn, has the same samples as the audio of the row"
        what_to_do = (
            "The model would hear its target in the prompt: give another recording, "
            "or pass --allow-own-reference."
        )
        yield number, Problem(Path(file), line, what, what_to_do)


def find_duplicates(tables: sqlite3.Connection, limits: Limits) -> Iterator[tuple[int, Problem]]:
    """Rows whose recording, whatever its name and format, is an earlier row's: (row's number, problem).

    The same recording and words behind another prompt (another reference or scene) are another example, and allowed.
    """
    query = """
        SELECT content_hash, number, path, file, line, text, prompt FROM recordings
        WHERE place = 0 AND content_hash IS NOT NULL ORDER BY content_hash, number
    """
    for _, rows in itertools.groupby(tables.execute(query), key=lambda row: row[0]):
        (_, _, _, _, first_line, first_text, first_prompt), *later = rows
        lines = {(first_text, first_prompt): first_line}
        for _, number, path, file, line, text, prompt in later:
            same_line = lines.get((text, prompt), first_line)
            what = f"{name_recording(path, file)} is the same recording as in line {same_line}"
            if text != first_text:
                what_to_do = "Correct the wrong transcript."
                yield number, Problem(Path(file), line, f"{what}, but has other words", what_to_do)
            elif (text, prompt) not in lines:
                lines[text, prompt] = line
            elif not limits.allow_duplicates:
                yield (
                    number,
                    Problem(Path(file), line, what, "Remove one row, or pass --allow-duplicates."),
                )
