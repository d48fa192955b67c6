"""A page about a corpus, before it is encoded: how its recordings are spread, what is odd among them, what is wrong.

One HTML file that holds its audio, so it can be moved, mailed and opened offline.
"""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from higgs_trainer.audio.files import SAMPLE_RATE_HZ, decode_file, to_waveform
from higgs_trainer.corpus.measurements import Limits
from higgs_trainer.corpus.plausibility import find_paces
from higgs_trainer.corpus.work_directory import ROWS, open_table_file
from higgs_trainer.errors import AudioError
from higgs_trainer.page.document import PLAYERS_SCRIPT, read_script, write_document
from higgs_trainer.page.sound import draw_spectrogram, encode_audio

TEMPLATE = "corpus_page.html.jinja"
BARS = 40
EACH_END = 3  # recordings to listen to at both ends of a distribution
PROBLEMS_SHOWN = 200
PROBLEMS_PLAYED = 20
SECONDS_PLAYED = 20.0


@dataclass(frozen=True)
class Player:
    """A recording to listen to; ``audio`` and ``spectrogram`` are empty where it cannot be played."""

    path: str
    text: str
    caption: str
    seconds: float = 0.0
    audio: str = ""
    spectrogram: str = ""


@dataclass(frozen=True)
class Distribution:
    """A histogram, its bars as shares of the highest, and the recordings at its ends."""

    title: str
    low: str
    median: str
    high: str
    counts: list[int]
    heights: list[float]
    ends: list[Player]


def write_report_page(folder: Path, path: Path, *, title: str, limits: Limits) -> None:
    """Write the page to ``path`` from what the unfinished folder holds once everything is checked."""
    tables = open_table_file(folder / ROWS)
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
    tables.close()


def _find_facts(tables: sqlite3.Connection) -> dict[str, str]:
    count, seconds = tables.execute(
        "SELECT COUNT(*), TOTAL(seconds) FROM recordings WHERE place = 0"
    ).fetchone()
    (problems,) = tables.execute("SELECT COUNT(*) FROM problems").fetchone()
    (bad_rows,) = tables.execute("SELECT COUNT(DISTINCT number) FROM problems").fetchone()
    kinds = tables.execute(
        "SELECT sample_rate_hz, channels, COUNT(*) FROM recordings WHERE place = 0 GROUP BY 1, 2 ORDER BY 3 DESC"
    )
    return {
        "Recordings that can be read": f"{count:,} ({seconds / 3600:.2f} h)",
        "Rows with a problem": f"{bad_rows:,} ({problems:,} problems)",
        "Formats": ", ".join(
            f"{n:,} at {rate_hz:,} Hz {'mono' if channels == 1 else 'stereo'}"
            for rate_hz, channels, n in kinds
        ),
    }


def _find_distributions(tables: sqlite3.Connection, limits: Limits) -> list[Distribution]:
    rows = tables.execute(
        "SELECT number, seconds, loudness_dbfs, peak_dbfs FROM recordings WHERE place = 0"
    ).fetchall()
    if not rows:
        return []
    numbers, seconds, loudness, peaks = (np.array(column) for column in zip(*rows, strict=True))
    found = [
        _describe(tables, "Duration", numbers, seconds, "{:.1f} s".format),
        _describe(tables, "Loudness (RMS while somebody speaks)", numbers, loudness, "{:.1f} dBFS".format),
        _describe(tables, "Peak", numbers, peaks, "{:.1f} dBFS".format),
    ]
    for (language, unit), paces in find_paces(tables, limits).items():
        targets = [pace for pace in paces if pace.place == 0]
        if targets:
            found.append(
                _describe(
                    tables,
                    f"Pace{f', {language}' if language else ''}",
                    np.array([pace.number for pace in targets]),
                    np.array([pace.per_second for pace in targets]),
                    f"{{:.1f}} {unit} a second".format,
                )
            )
    return found


def _describe(
    tables: sqlite3.Connection,
    title: str,
    numbers: np.ndarray,
    values: np.ndarray,
    show: Callable[[float], str],
) -> Distribution:
    counts, _ = np.histogram(values, bins=BARS)
    order = np.argsort(values, kind="stable")
    ends = dict.fromkeys([*order[:EACH_END].tolist(), *order[-EACH_END:].tolist()])
    return Distribution(
        title=title,
        low=show(values.min()),
        median=show(float(np.median(values))),
        high=show(values.max()),
        counts=counts.tolist(),
        heights=(100 * counts / counts.max()).round(1).tolist(),
        ends=[_play(tables, int(numbers[index]), show(values[index])) for index in ends],
    )


def _play(tables: sqlite3.Connection, number: int, caption: str) -> Player:
    query = "SELECT path, text FROM recordings WHERE number = ? AND place = 0"
    path, text = tables.execute(query, (number,)).fetchone() or ("", "")
    player = Player(Path(path).name, text, caption)
    if not path:
        return player
    try:
        waveform_S = to_waveform(decode_file(path))
    except AudioError:  # it was moved meanwhile; that it cannot be heard is seen on the page
        return player
    played_S = waveform_S[: round(SECONDS_PLAYED * SAMPLE_RATE_HZ)]
    return replace(
        player,
        seconds=len(waveform_S) / SAMPLE_RATE_HZ,
        audio=encode_audio(played_S, SAMPLE_RATE_HZ),
        spectrogram=draw_spectrogram(played_S, SAMPLE_RATE_HZ),
    )


def _find_problems(tables: sqlite3.Connection) -> Sequence[tuple[str, Player]]:
    query = "SELECT number, file, line, what, what_to_do FROM problems ORDER BY number, rowid LIMIT ?"
    problems = tables.execute(query, (PROBLEMS_SHOWN,)).fetchall()
    return [
        (
            f"{Path(file).name}:{line}: {what}. {what_to_do}",
            _play(tables, number, "") if index < PROBLEMS_PLAYED else Player("", "", ""),
        )
        for index, (number, file, line, what, what_to_do) in enumerate(problems)
    ]
