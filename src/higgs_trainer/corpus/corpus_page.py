"""Write an HTML page about a corpus before it is encoded: a verdict, problems, speakers, and distributions.

The page is one file that contains its audio, so it can be moved, mailed and opened offline.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from higgs_trainer.audio.files import SAMPLE_RATE_HZ, decode_file, to_waveform
from higgs_trainer.corpus.distribution import Distribution, describe_distribution
from higgs_trainer.corpus.measurements import Limits
from higgs_trainer.corpus.plausibility import find_paces
from higgs_trainer.corpus.verdict import build_title, list_remarks
from higgs_trainer.corpus.work_directory.corpus_tables import CorpusTables, VoiceCount
from higgs_trainer.corpus.work_directory.directory import WorkDirectory
from higgs_trainer.errors import AudioError, Problem, shorten
from higgs_trainer.page.document import COPYING_SCRIPT, PLAYERS_SCRIPT, read_script, write_document
from higgs_trainer.page.sound import draw_spectrogram, encode_audio

TEMPLATE = "corpus_page.html.jinja"
MOST_BYTES = 5_000_000
VOICES_SHOWN = 50
KINDS_SHOWN = 20
PLAYED_PER_KIND = 4
LISTED_PER_KIND = 50
PLACES_COPIED = 1_000
MOST_CHARACTERS = 500
SECONDS_PLAYED = 10.0


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


@dataclass
class ProblemKind:
    """Problems that differ only in numbers and names: their count, the first ones with players, and further ones."""

    name: str
    count: int = 0
    played: list[tuple[str, PlayedRecording]] = field(default_factory=list)
    listed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PlayedDistribution:
    """A distribution with the recordings at both ends, which ``ends`` has by name, such as "Shortest"."""

    shape: Distribution
    ends: dict[str, list[PlayedRecording]]


def write_corpus_page(work: WorkDirectory, path: Path, *, title: str, limits: Limits) -> None:
    """Write the page to ``path`` from a work directory whose corpus has been judged.

    Args:
        title: the name of the data. The numbers of the corpus follow it.
    """
    with work.open_tables() as tables:
        rejected = tables.count_rejected()
        write_document(
            path,
            Path(__file__).parent / TEMPLATE,
            most_bytes=MOST_BYTES,
            script=read_script(PLAYERS_SCRIPT, COPYING_SCRIPT),
            title=f"{title}: {build_title(tables)}",
            source=title,
            numbers=build_title(tables),
            remarks=list(list_remarks(tables)),
            rejected=rejected,
            kinds=_group_problems(tables),
            kinds_shown=KINDS_SHOWN,
            places=_list_places(tables),
            places_copied=PLACES_COPIED,
            voices=tables.count_voices()[:VOICES_SHOWN],
            voices_left_out=max(0, len(tables.count_voices()) - VOICES_SHOWN),
            describe_share=_describe_share,
            formats=[
                f"{count:,} at {rate_hz:,} Hz {'mono' if channels == 1 else 'stereo'}"
                for rate_hz, channels, count in tables.count_audio_formats()
            ],
            distributions=list(_find_distributions(tables, limits)),
        )


def _group_problems(tables: CorpusTables) -> list[ProblemKind]:
    """Group the problems, the most frequent kind first. Of each kind, the first ones are played or listed."""
    kinds: dict[str, ProblemKind] = {}
    for number, problem in tables.iterate_problems():
        kind = kinds.get(problem.general)
        if kind is None:
            kind = kinds[problem.general] = ProblemKind(shorten(problem.general, MOST_CHARACTERS))
        kind.count += 1
        if len(kinds) > KINDS_SHOWN:
            continue
        shown = shorten(str(_hide_folder(problem)), MOST_CHARACTERS)
        if len(kind.played) < PLAYED_PER_KIND:
            kind.played.append((shown, _play_target(tables, number, "")))
        elif len(kind.listed) < LISTED_PER_KIND:
            kind.listed.append(shown)
    return sorted(kinds.values(), key=lambda kind: -kind.count)


def _hide_folder(problem: Problem) -> Problem:
    return replace(problem, file=Path(problem.file.name))


def _list_places(tables: CorpusTables) -> list[str]:
    """List the places of the rows with a problem, each once."""
    places: dict[str, None] = {}
    for _, problem in tables.iterate_problems():
        if len(places) == PLACES_COPIED:
            break
        places[_hide_folder(problem).place] = None
    return list(places)


def _describe_share(voice: VoiceCount) -> str:
    """Return how many rows of a speaker are usable, in words if it is all of them."""
    return "all" if voice.usable == voice.rows else f"{voice.usable:,} of {voice.rows:,}"


def _find_distributions(tables: CorpusTables, limits: Limits) -> Iterator[PlayedDistribution]:
    """Yield the distributions of all recordings that have samples."""
    rows = [
        (target.number, target.seconds, target.loudness_dbfs, target.peak_dbfs)
        for target in tables.iterate_targets()
        if target.seconds > 0
    ]
    if not rows:
        return
    numbers, seconds, loudness, peaks = (np.array(column) for column in zip(*rows, strict=True))
    for title, unit, values, ends in (
        ("Duration", "s", seconds, ("Shortest", "Longest")),
        ("Loudness of the speech (RMS)", "dBFS", loudness, ("Quietest", "Loudest")),
        ("Peak", "dBFS", peaks, ("Lowest", "Highest")),
    ):
        yield _describe(tables, title, unit, numbers, values, ends)
    for (language, unit), paces in find_paces(tables, limits).items():
        targets = [pace for pace in paces if pace.place == 0]
        if targets:
            yield _describe(
                tables,
                f"Pace{f', {language}' if language else ''}",
                f"{unit} a second",
                np.array([pace.number for pace in targets]),
                np.array([pace.per_second for pace in targets]),
                ("Slowest", "Fastest"),
            )


def _describe(
    tables: CorpusTables,
    title: str,
    unit: str,
    numbers: np.ndarray,
    values: np.ndarray,
    names_of_ends: tuple[str, str],
) -> PlayedDistribution:
    shape = describe_distribution(title, unit, values)

    def play(indices: Sequence[int]) -> list[PlayedRecording]:
        return [
            # The player shows the seconds of each recording already.
            _play_target(tables, int(numbers[index]), "" if unit == "s" else f"{values[index]:.1f} {unit}")
            for index in indices
        ]

    ends = {
        name: play(indices)
        for name, indices in zip(names_of_ends, (shape.lowest, shape.highest), strict=True)
    }
    return PlayedDistribution(shape, {name: played for name, played in ends.items() if played})


def _play_target(tables: CorpusTables, number: int, caption: str) -> PlayedRecording:
    """Encode the recording of a row. Without a recording that can be read, return `NOT_PLAYED`."""
    target = tables.read_recording(number, 0)
    if target is None:
        return NOT_PLAYED
    played = PlayedRecording(Path(target.path).name, shorten(target.text or "", MOST_CHARACTERS), caption)
    try:
        waveform_S = to_waveform(decode_file(target.path, max_seconds=target.seconds + 1))
    except AudioError:
        # The file was moved since it was measured. The page shows it without a player.
        return played
    played_S = waveform_S[: round(SECONDS_PLAYED * SAMPLE_RATE_HZ)]
    if not len(played_S):
        return played
    return replace(
        played,
        seconds=len(waveform_S) / SAMPLE_RATE_HZ,
        audio=encode_audio(played_S, SAMPLE_RATE_HZ),
        spectrogram=draw_spectrogram(played_S, SAMPLE_RATE_HZ),
    )
