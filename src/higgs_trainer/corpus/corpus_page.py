"""Write an HTML page about a corpus before it is encoded: distributions with their extreme recordings, and problems.

The page is one file that contains its audio, so it can be moved, mailed and opened offline.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from higgs_trainer.audio.files import SAMPLE_RATE_HZ, decode_file, to_waveform
from higgs_trainer.corpus.measurements import Limits
from higgs_trainer.corpus.plausibility import find_paces
from higgs_trainer.corpus.work_directory.corpus_tables import CorpusTables
from higgs_trainer.corpus.work_directory.directory import WorkDirectory
from higgs_trainer.errors import AudioError
from higgs_trainer.page.document import PLAYERS_SCRIPT, read_script, write_document
from higgs_trainer.page.sound import draw_spectrogram, encode_audio

TEMPLATE = "corpus_page.html.jinja"
BARS = 40
RECORDINGS_PER_END = 3
PROBLEMS_SHOWN = 200
PROBLEMS_PLAYED = 20
SECONDS_PLAYED = 20.0


@dataclass(frozen=True)
class PlayedRecording:
    """A recording with a player. ``audio`` and ``spectrogram`` are empty if it cannot be decoded."""

    path: str
    text: str
    caption: str
    seconds: float = 0.0
    audio: str = ""
    spectrogram: str = ""


NOT_PLAYED = PlayedRecording("", "", "")


@dataclass(frozen=True)
class Distribution:
    """A histogram, with bars in percent of the highest, and the recordings at both ends."""

    title: str
    low: str
    median: str
    high: str
    counts: list[int]
    heights: list[float]
    ends: list[PlayedRecording]


def write_corpus_page(work: WorkDirectory, path: Path, *, title: str, limits: Limits) -> None:
    """Write the page to ``path`` from a work directory whose corpus has been judged."""
    with work.open_tables() as tables:
        write_document(
            path,
            Path(__file__).parent / TEMPLATE,
            script=read_script(PLAYERS_SCRIPT),
            title=title,
            facts=_find_facts(tables),
            distributions=_find_distributions(tables, limits),
            problems=_find_problems(tables),
            problems_shown=PROBLEMS_SHOWN,
        )


def _find_facts(tables: CorpusTables) -> dict[str, str]:
    count, seconds = tables.count_targets()
    return {
        "Recordings that can be read": f"{count:,} ({seconds / 3600:.2f} h)",
        "Rows with a problem": f"{tables.count_rejected():,} ({tables.count_problems():,} problems)",
        "Formats": ", ".join(
            f"{count:,} at {rate_hz:,} Hz {'mono' if channels == 1 else 'stereo'}"
            for rate_hz, channels, count in tables.count_audio_formats()
        ),
    }


def _find_distributions(tables: CorpusTables, limits: Limits) -> list[Distribution]:
    rows = [
        (target.number, target.seconds, target.loudness_dbfs, target.peak_dbfs)
        for target in tables.iterate_targets()
    ]
    if not rows:
        return []
    numbers, seconds, loudness, peaks = (np.array(column) for column in zip(*rows, strict=True))
    found = [
        _describe(tables, "Duration", numbers, seconds, "{:.1f} s".format),
        _describe(tables, "Loudness (RMS of the speech)", numbers, loudness, "{:.1f} dBFS".format),
        _describe(tables, "Peak", numbers, peaks, "{:.1f} dBFS".format),
    ]
    for (language, unit), paces in find_paces(tables, limits).items():
        targets = [pace for pace in paces if pace.place == 0 and not pace.is_short]
        if targets:
            found.append(
                _describe(
                    tables,
                    f"Pace{f', {language}' if language else ''}",
                    np.array([pace.number for pace in targets]),
                    np.array([pace.per_second for pace in targets]),
                    f"{{:.1f}} {unit} per second".format,
                )
            )
    return found


def _describe(
    tables: CorpusTables,
    title: str,
    numbers: np.ndarray,
    values: np.ndarray,
    show: Callable[[float], str],
) -> Distribution:
    counts, _ = np.histogram(values, bins=BARS)
    order = np.argsort(values, kind="stable")
    ends = dict.fromkeys([*order[:RECORDINGS_PER_END].tolist(), *order[-RECORDINGS_PER_END:].tolist()])
    return Distribution(
        title=title,
        low=show(values.min()),
        median=show(float(np.median(values))),
        high=show(values.max()),
        counts=counts.tolist(),
        heights=(100 * counts / counts.max()).round(1).tolist(),
        ends=[_play_target(tables, int(numbers[index]), show(values[index])) for index in ends],
    )


def _play_target(tables: CorpusTables, number: int, caption: str) -> PlayedRecording:
    target = tables.read_recording(number, 0)
    if target is None:
        return NOT_PLAYED
    played = PlayedRecording(Path(target.path).name, target.text or "", caption)
    try:
        waveform_S = to_waveform(decode_file(target.path, max_seconds=target.seconds + 1))
    except AudioError:
        # The file was moved since it was measured. The page shows it without a player.
        return played
    played_S = waveform_S[: round(SECONDS_PLAYED * SAMPLE_RATE_HZ)]
    return replace(
        played,
        seconds=len(waveform_S) / SAMPLE_RATE_HZ,
        audio=encode_audio(played_S, SAMPLE_RATE_HZ),
        spectrogram=draw_spectrogram(played_S, SAMPLE_RATE_HZ),
    )


def _find_problems(tables: CorpusTables) -> Sequence[tuple[str, PlayedRecording]]:
    problems = list(islice(tables.iterate_problems(), PROBLEMS_SHOWN))
    return [
        (
            str(replace(problem, file=Path(problem.file.name))),
            _play_target(tables, number, "") if index < PROBLEMS_PLAYED else NOT_PLAYED,
        )
        for index, (number, problem) in enumerate(problems)
    ]
