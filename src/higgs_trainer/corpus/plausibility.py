"""Find problems that only the whole corpus shows: implausible transcripts and duplicate recordings."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from higgs_trainer.corpus.measurements import Limits, name_recording
from higgs_trainer.corpus.work_directory.corpus_tables import CorpusTables, StoredRecording
from higgs_trainer.errors import Problem, count_noun
from higgs_trainer.manifest.text import count_spoken, normalize_words

# The pace of a language with fewer recordings is compared with `USUAL_PACES`.
MIN_RECORDINGS = 30
USUAL_PACES = {"words": 2.5, "characters": 5.0}
"""A calm pace. Speakers of all languages are between a third and three times of it."""
TIMES_USUAL = 2.0
"""A pace may differ from the usual one so many times more than from that of a corpus, because languages differ."""
FEWEST_SPOKEN = {"words": 3, "characters": 4}
"""A shorter text has no pace: "Hello?" may be drawn out. Only if a text of this length would be too slow is it odd."""
# This many robust standard deviations from the median are always allowed.
ALLOWED_DEVIATIONS = 3.0
# The standard deviation of a normal distribution, in median absolute deviations.
MAD_TO_DEVIATION = 1.4826


@dataclass(frozen=True, slots=True)
class Pace:
    """The pace of a recording: words or, in a script without spaces, characters per second.

    It is small, because the paces of all recordings are in memory together. Of a text that is too short to have a pace,
    ``per_second`` is that of the shortest text that has one.
    """

    number: int
    place: int
    count: int
    per_second: float
    is_short: bool


def find_paces(tables: CorpusTables, limits: Limits) -> dict[tuple[str, str], list[Pace]]:
    """Compute the pace of every recording that has words and is not silent, by language and unit."""
    paces: dict[tuple[str, str], list[Pace]] = defaultdict(list)
    for recording in tables.iterate_audible(limits.min_peak_dbfs):
        count, unit = count_spoken(recording.text or "")
        if count and recording.speech_seconds > 0:
            is_short = count < FEWEST_SPOKEN[unit]
            per_second = max(count, FEWEST_SPOKEN[unit]) / recording.speech_seconds
            pace = Pace(recording.number, recording.place, count, per_second, is_short)
            paces[recording.language or "", unit].append(pace)
    return paces


def find_odd_paces(tables: CorpusTables, limits: Limits) -> Iterator[tuple[int, Problem]]:
    """Find rows whose pace is implausible for their language: (number of the row, problem).

    The pace is compared with the median of logarithms, and the spread is the median distance from it, so that wrong
    rows do not hide one another. A language with few recordings is compared with the usual pace of speech.
    """
    for (_, unit), paces in find_paces(tables, limits).items():
        logs = np.log([pace.per_second for pace in paces if not pace.is_short])
        if len(logs) < MIN_RECORDINGS:
            median, where = math.log(USUAL_PACES[unit]), "usually"
            allowed = math.log(limits.max_pace_factor * TIMES_USUAL)
        else:
            median, where = float(np.median(logs)), "in the corpus"
            deviation = MAD_TO_DEVIATION * float(np.median(np.abs(logs - median)))
            allowed = max(math.log(limits.max_pace_factor), ALLOWED_DEVIATIONS * deviation)
        for pace in paces:
            distance = math.log(pace.per_second) - median
            if distance < -allowed or (distance > allowed and not pace.is_short):
                recording = tables.read_recording(pace.number, pace.place)
                assert recording is not None
                yield pace.number, _describe_pace(recording, pace, unit, f"{math.exp(median):.1f} {where}")


def _describe_pace(recording: StoredRecording, pace: Pace, unit: str, usual: str) -> Problem:
    words = count_noun(pace.count, unit.removesuffix("s"))
    what = (
        f"{name_recording(recording.path, recording.file)} has {recording.speech_seconds:.1f} s of speech for {words}: "
        f"{_format_pace(pace.count / recording.speech_seconds)} per second, against {usual}"
    )
    what_to_do = "Check that this is its transcript. Correct it, or raise --max-pace-factor."
    kind = "the pace of a recording does not fit its transcript"
    return Problem(Path(recording.file), recording.line, what, what_to_do, kind)


def _format_pace(per_second: float) -> str:
    return f"{per_second:.1f}" if per_second >= 0.1 else f"{per_second:.2g}"


def find_own_references(tables: CorpusTables) -> Iterator[tuple[int, Problem]]:
    """Find rows whose reference or earlier turn has the same samples as their target: (number of the row, problem).

    Byte-for-byte copies are found earlier, when the row is read.
    """
    for clip in tables.iterate_own_references():
        kind = "a reference or an earlier turn has the same samples as the audio of the row"
        what = f"{clip.path}, a reference or an earlier turn, has the same samples as the audio of the row"
        what_to_do = (
            "The model would hear its target in the prompt: give another recording, "
            "or pass --allow-own-reference."
        )
        yield clip.number, Problem(Path(clip.file), clip.line, what, what_to_do, kind)


def find_other_words(tables: CorpusTables, limits: Limits) -> Iterator[tuple[int, Problem]]:
    """Find references and earlier turns whose recording has other words elsewhere: (number of the row, problem)."""
    for _, group in itertools.groupby(
        tables.iterate_contents_with_several_texts(limits.min_peak_dbfs), key=lambda one: one.content_hash
    ):
        first: StoredRecording | None = None
        for clip in group:
            first = first or clip
            if clip.place > 0 and normalize_words(clip.text or "") != normalize_words(first.text or ""):
                what = f"is the same recording as in line {first.line}, but has other words"
                what_to_do = "Correct the wrong transcript."
                yield _name_problem(clip, what, what_to_do)


def find_duplicates(tables: CorpusTables, limits: Limits) -> Iterator[tuple[int, Problem]]:
    """Find rows with the recording of an earlier row, whatever its name and format: (number of the row, problem).

    The same recording and words with another prompt (another reference or scene) are another example, and allowed.
    """
    for first, *later in tables.group_targets_by_content(limits.min_peak_dbfs):
        lines = {(first.text, first.prompt): first.line}
        for recording in later:
            key = (recording.text, recording.prompt)
            same_line = lines.get(key, first.line)
            what = f"is the same recording as in line {same_line}"
            if recording.text != first.text:
                what, what_to_do = f"{what}, but has other words", "Correct the wrong transcript."
            elif key not in lines:
                lines[key] = recording.line
                continue
            elif not limits.allow_duplicates:
                what_to_do = "Remove one row, or pass --allow-duplicates."
            else:
                continue
            yield _name_problem(recording, what, what_to_do)


def _name_problem(recording: StoredRecording, what: str, what_to_do: str) -> tuple[int, Problem]:
    """Build the problem of a recording, with the number of its row. ``what`` continues a sentence that names it."""
    named = f"{name_recording(recording.path, recording.file)} {what}"
    return recording.number, Problem(
        Path(recording.file), recording.line, named, what_to_do, f"a recording {what}"
    )
