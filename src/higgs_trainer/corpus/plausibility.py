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
from higgs_trainer.errors import Problem
from higgs_trainer.manifest.text import count_spoken, normalize_words

# The pace of a language with fewer recordings is not judged.
MIN_RECORDINGS = 30
# This many robust standard deviations from the median are always allowed.
ALLOWED_DEVIATIONS = 3.0
# The standard deviation of a normal distribution, in median absolute deviations.
MAD_TO_DEVIATION = 1.4826


@dataclass(frozen=True, slots=True)
class Pace:
    """The pace of a recording: words or, in a script without spaces, characters per second.

    It is small, because the paces of all recordings are in memory together.
    """

    number: int
    place: int
    count: int
    per_second: float


def find_paces(tables: CorpusTables, limits: Limits) -> dict[tuple[str, str], list[Pace]]:
    """Compute the pace of every recording that has words and is not silent, by language and unit."""
    paces: dict[tuple[str, str], list[Pace]] = defaultdict(list)
    for recording in tables.iterate_audible(limits.min_peak_dbfs):
        count, unit = count_spoken(recording.text or "")
        if count and recording.speech_seconds > 0:
            pace = Pace(recording.number, recording.place, count, count / recording.speech_seconds)
            paces[recording.language or "", unit].append(pace)
    return paces


def find_odd_paces(tables: CorpusTables, limits: Limits) -> Iterator[tuple[int, Problem]]:
    """Find rows whose pace is implausible for their language: (number of the row, problem).

    The pace is compared with the median of logarithms, and the spread is the median distance from it, so that wrong
    rows do not hide one another.
    """
    for (_, unit), paces in find_paces(tables, limits).items():
        if len(paces) < MIN_RECORDINGS:
            continue
        logs = np.log([pace.per_second for pace in paces])
        median = float(np.median(logs))
        deviation = MAD_TO_DEVIATION * float(np.median(np.abs(logs - median)))
        allowed = max(math.log(limits.max_pace_factor), ALLOWED_DEVIATIONS * deviation)
        for pace, distance in zip(paces, logs - median, strict=True):
            if abs(distance) > allowed:
                recording = tables.read_recording(pace.number, pace.place)
                assert recording is not None
                yield pace.number, _describe_pace(recording, pace, unit, math.exp(median))


def _describe_pace(recording: StoredRecording, pace: Pace, unit: str, usual: float) -> Problem:
    what = (
        f"{name_recording(recording.path, recording.file)} has {recording.speech_seconds:.1f} s of speech "
        f"for {pace.count} {unit}: {pace.per_second:.1f} per second, against {usual:.1f} in the corpus"
    )
    what_to_do = "Check that this is its transcript. Correct it, or raise --max-pace-factor."
    return Problem(Path(recording.file), recording.line, what, what_to_do)


def find_own_references(tables: CorpusTables) -> Iterator[tuple[int, Problem]]:
    """Find rows whose reference or earlier turn has the same samples as their target: (number of the row, problem).

    Byte-for-byte copies are found earlier, when the row is read.
    """
    for clip in tables.iterate_own_references():
        what = f"{clip.path}, a reference or an earlier turn, has the same samples as the audio of the row"
        what_to_do = (
            "The model would hear its target in the prompt: give another recording, "
            "or pass --allow-own-reference."
        )
        yield clip.number, Problem(Path(clip.file), clip.line, what, what_to_do)


def find_other_words(tables: CorpusTables) -> Iterator[tuple[int, Problem]]:
    """Find references and earlier turns whose recording has other words elsewhere: (number of the row, problem)."""
    for _, group in itertools.groupby(
        tables.iterate_contents_with_several_texts(), key=lambda one: one.content_hash
    ):
        first: StoredRecording | None = None
        for clip in group:
            first = first or clip
            if clip.place > 0 and normalize_words(clip.text or "") != normalize_words(first.text or ""):
                what = (
                    f"{name_recording(clip.path, clip.file)} is the same recording as in line {first.line}, "
                    "but has other words"
                )
                yield clip.number, Problem(Path(clip.file), clip.line, what, "Correct the wrong transcript.")


def find_duplicates(tables: CorpusTables, limits: Limits) -> Iterator[tuple[int, Problem]]:
    """Find rows with the recording of an earlier row, whatever its name and format: (number of the row, problem).

    The same recording and words with another prompt (another reference or scene) are another example, and allowed.
    """
    for first, *later in tables.group_targets_by_content():
        lines = {(first.text, first.prompt): first.line}
        for recording in later:
            key = (recording.text, recording.prompt)
            same_line = lines.get(key, first.line)
            what = f"{name_recording(recording.path, recording.file)} is the same recording as in line {same_line}"
            if recording.text != first.text:
                what, what_to_do = f"{what}, but has other words", "Correct the wrong transcript."
            elif key not in lines:
                lines[key] = recording.line
                continue
            elif not limits.allow_duplicates:
                what_to_do = "Remove one row, or pass --allow-duplicates."
            else:
                continue
            yield recording.number, Problem(Path(recording.file), recording.line, what, what_to_do)
