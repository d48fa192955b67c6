"""Inspect every row and every recording before anything is encoded.

store_rows      read the rows and write them into the work directory (process 0)
measure_rows    measure the recordings (each process its share)
judge_corpus    collect all problems, and add those that only the whole corpus shows (process 0)
divide_rows     draw the rows to hold out, and references (process 0)
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from higgs_trainer.audio.files import SAMPLE_RATE_HZ
from higgs_trainer.corpus.held_out import HoldOut, describe_held_out, draw_held_out
from higgs_trainer.corpus.measurements import (
    Limits,
    Measurement,
    find_problems,
    measure_recording,
    name_recording,
)
from higgs_trainer.corpus.plausibility import (
    find_duplicates,
    find_odd_paces,
    find_other_words,
    find_own_references,
)
from higgs_trainer.corpus.reference_pairing import pair_references
from higgs_trainer.corpus.work_directory.corpus_tables import CorpusTables
from higgs_trainer.corpus.work_directory.directory import WorkDirectory
from higgs_trainer.distributed import Processes
from higgs_trainer.errors import AudioError, ManifestError, Problem, count_noun
from higgs_trainer.files import write_json_lines
from higgs_trainer.manifest.rows import CheckedRow
from higgs_trainer.manifest.text import has_words
from higgs_trainer.manifest.utterance import Utterance
from higgs_trainer.progress import Track

# One reference is often used by many rows.
CACHED_MEASUREMENTS = 10_000

MeasureRecording = Callable[[Path], tuple[Measurement | None, list[tuple[str, str]]]]


def store_rows(checked: Iterable[CheckedRow], work: WorkDirectory) -> list[str]:
    """Write rows and problems into the work directory. Return a note if texts have no word."""
    first: Utterance | None = None
    count = 0
    with work.create_tables() as tables:
        for number, row in enumerate(checked):
            if (utterance := row.utterance) is not None:
                tables.add_row(number, utterance)
                if not has_words(utterance.text):
                    count += 1
                    first = first or utterance
            tables.add_problems(number, row.problems)
    if first is None:
        return []
    return [f"{count} texts contain tags or signs but no word (first: {first.file}:{first.line})"]


def measure_rows(work: WorkDirectory, processes: Processes, limits: Limits, progress: Track) -> None:
    """Decode the recordings of this process's rows, and write measurements and problems into its own file."""
    measure = functools.lru_cache(CACHED_MEASUREMENTS)(functools.partial(_measure, limits=limits))
    with work.open_tables() as rows, work.create_measurements(processes.index) as tables:
        total = rows.count_rows(processes.index, processes.count)
        share = rows.iterate_rows(processes.index, processes.count)
        for number, utterance in progress(share, "checking recordings", total):
            _measure_row(tables, number, utterance, measure)


def _measure(path: Path, *, limits: Limits) -> tuple[Measurement | None, list[tuple[str, str]]]:
    try:
        measurement = measure_recording(path, max_seconds=limits.max_seconds)
    except AudioError as error:
        return None, [(error.what, error.what_to_do)]
    return measurement, find_problems(measurement, limits)


def _measure_row(tables: CorpusTables, number: int, utterance: Utterance, measure: MeasureRecording) -> None:
    clips = [(utterance.recording, utterance.text), *((clip.audio, clip.text) for clip in utterance.clips)]
    for place, (path, text) in enumerate(clips):
        measurement, problems = measure(path)
        name = name_recording(path, utterance.file)
        tables.add_problems(
            number,
            (
                Problem(utterance.file, utterance.line, f"{name} {what}", what_to_do, f"a recording {what}")
                for what, what_to_do in problems
            ),
        )
        if measurement is not None:
            tables.add_recording(number, place, utterance, path, text, measurement)


def judge_corpus(
    work: WorkDirectory, processes: Processes, limits: Limits, *, allow_own_reference: bool = False
) -> None:
    """Collect the measurements and problems of all processes, and add the problems of the corpus as a whole."""
    with work.open_tables() as tables:
        for index in range(processes.count):
            with work.open_measurements(index) as part:
                tables.add_all_from(part)
        found = [
            *find_odd_paces(tables, limits),
            *find_duplicates(tables, limits),
            *find_other_words(tables, limits),
        ]
        if not allow_own_reference:
            found += find_own_references(tables)
        for number, problem in found:
            tables.add_problems(number, [problem])


def divide_rows(
    work: WorkDirectory, hold_out: HoldOut | None, *, pair_seed: int | None, max_rejected: int
) -> list[str]:
    """Draw the rows to hold out, then references on each side. Return notes on the rows that are held out.

    Nothing is drawn from rows of which too many are rejected.
    """
    wanted = None
    with work.open_tables() as tables:
        if hold_out is not None and not _are_rejected(tables, max_rejected):
            wanted = draw_held_out(tables, hold_out, is_paired=pair_seed is not None)
    if pair_seed is not None:
        for held_out in (False, True):
            pair_accepted(work, seed=pair_seed, held_out=held_out)
    if wanted is None:
        return []
    with work.open_tables() as tables:
        return describe_held_out(tables, wanted)


def _are_rejected(tables: CorpusTables, max_rejected: int) -> bool:
    rejected = tables.count_rejected()
    return rejected > max_rejected or (rejected > 0 and not tables.count_accepted())


def check_rejected(work: WorkDirectory, max_rejected: int, page: Path | None) -> None:
    """Raise ManifestError if more than ``max_rejected`` rows are rejected, or all.

    Args:
        page: the page about the corpus, if it was written.
    """
    with work.open_tables() as tables:
        if _are_rejected(tables, max_rejected):
            raise ManifestError((problem for _, problem in tables.iterate_problems()), page=page)


def write_rejected(tables: CorpusTables, path: Path) -> None:
    """Write the rejected rows as JSON lines: file, line, and every reason."""
    write_json_lines(path, (_describe_rejected(problems) for problems in tables.group_problems()))


def _describe_rejected(problems: list[Problem]) -> dict[str, object]:
    reasons = [{"what": problem.what, "what_to_do": problem.what_to_do} for problem in problems]
    return {"file": str(problems[0].file), "line": problems[0].line, "reasons": reasons}


def pair_accepted(work: WorkDirectory, *, seed: int, held_out: bool) -> None:
    """Draw references among the accepted rows of one side. All of them are in memory at once."""
    with work.open_tables() as tables:
        numbered = list(tables.iterate_accepted(held_out=held_out))
        paired, problems = pair_references([utterance for _, utterance in numbered], seed=seed)
        by_id = {utterance.utterance_id: utterance for utterance in paired}
        number_of = {utterance.recording: number for number, utterance in numbered}
        unpaired = iter(problems)
        for number, utterance in numbered:
            if utterance.utterance_id not in by_id:
                tables.add_problems(number, [next(unpaired)])
            elif (new := by_id[utterance.utterance_id]) != utterance:
                (reference,) = new.references
                tables.replace_row(number, new)
                tables.add_reference(number, number_of[reference.audio])


def find_notes(work: WorkDirectory) -> Iterator[str]:
    """Yield notes on accepted recordings that are not ideal: averaged or upsampled."""
    with work.open_tables() as tables:
        found = {
            "with two channels, which were averaged": tables.find_averaged(),
            f"with a sample rate below {SAMPLE_RATE_HZ} Hz: resampling cannot restore high frequencies": (
                tables.find_upsampled(SAMPLE_RATE_HZ)
            ),
        }
    for what, (count, first) in found.items():
        if first is not None:
            yield f"{count_noun(count, 'recording')} {what} (first: {first.file}:{first.line})"
