"""A corpus is summed up by its numbers: enough for a voice or not, empty files, problems, sample rates."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from higgs_trainer.corpus.measurements import Measurement
from higgs_trainer.corpus.verdict import build_title, format_duration, judge_corpus_size, list_remarks
from higgs_trainer.corpus.work_directory.corpus_tables import CorpusTables, VoiceCount
from higgs_trainer.errors import Problem
from higgs_trainer.manifest.utterance import Utterance


@pytest.fixture
def tables(tmp_path: Path) -> Iterator[CorpusTables]:
    with CorpusTables(tmp_path / "rows.sqlite") as opened:
        yield opened


def add(
    tables: CorpusTables,
    number: int,
    *,
    speaker: str | None = None,
    language: str | None = None,
    seconds: float | None = 60.0,
    rate_hz: int = 24_000,
    problem: str = "",
) -> None:
    """Add a row; without ``seconds``, one whose recording cannot be read."""
    row = Utterance(text="a", speaker=speaker, language=language, file=Path("rows.jsonl"), line=number)
    tables.add_row(number, row)
    if seconds is not None:
        measured = Measurement(str(number), seconds, seconds, rate_hz, 1, -3.0, -20.0, 0.0, False)
        tables.add_recording(number, 0, row, Path(f"{number}.wav"), "a", measured)
    if problem:
        tables.add_problems(number, [Problem(Path("rows.jsonl"), number, problem, "Mend it.")])


def count(speaker: str | None, usable: int, language: str = "nl", *, rows: int | None = None) -> VoiceCount:
    return VoiceCount(speaker, language, rows or usable, usable, 6.0 * usable)


def test_the_title_counts_recordings_speakers_hours_and_languages(tables: CorpusTables) -> None:
    add(tables, 1, speaker="a", language="nl", seconds=3600)
    add(tables, 2, speaker="b", language="nl", seconds=1872, problem="is wrong")
    add(tables, 3, speaker="b", language="nl", seconds=None, problem="cannot be read")
    assert build_title(tables) == "2 recordings, 2 speakers, 1.52 h, nl"
    for number, language in enumerate(("cs", "de", "en"), start=4):
        add(tables, number, language=language)
    assert build_title(tables) == "5 recordings, 2 speakers, 1.57 h, 4 languages"


def test_what_is_not_named_is_not_in_the_title(tables: CorpusTables) -> None:
    add(tables, 1, seconds=90)
    assert build_title(tables) == "1 recording, 2 min"
    assert format_duration(59) == "59 s"


def test_voices_are_counted_by_speaker_and_language_without_rejected_rows(tables: CorpusTables) -> None:
    add(tables, 1, speaker="a", language="nl", seconds=10)
    add(tables, 2, speaker="a", language="nl", seconds=20, problem="is wrong")
    add(tables, 3, speaker="a", language="en", seconds=40)
    add(tables, 4, seconds=None, problem="cannot be read")
    assert tables.count_voices() == [
        ("a", "en", 1, 1, 40.0),
        ("a", "nl", 2, 1, 10.0),
        (None, None, 1, 0, 0.0),
    ]


@pytest.mark.parametrize(
    ("voices", "kind", "said"),
    [
        ([count("a", 300)], "right", "Enough for one voice by LoRA: a has 300 usable recordings, 30 min;"),
        ([count("a", 299)], "", "A start for one voice by LoRA: a has 299 usable recordings, 30 min;"),
        ([count("a", 200), count("a", 100, "en")], "right", "Enough for one voice by LoRA: a has 300 usable"),
        (
            [count("a", 50), count("b", 49)],
            "",
            "A start for one voice by LoRA: a has 50 usable recordings, 5 min;",
        ),
        ([count("a", 49)], "wrong", "Too little for a voice by LoRA: a has 49 usable recordings, 5 min;"),
        (
            [count("a", 310), count("b", 400)],
            "right",
            "Enough for 2 voices by LoRA: b has 400 usable recordings,",
        ),
        ([count(name, 600) for name in "abcde"], "right", "; and 2 more; at least 300"),
        ([count(None, 300)], "right", "LoRA: 300 usable recordings, 30 min, if they are of one person;"),
        ([count("a", 0, rows=4)], "wrong", "No recording can be used;"),
        ([], "wrong", "No recording can be used;"),
    ],
)
def test_enough_is_300_recordings_of_a_speaker(voices: list[VoiceCount], kind: str, said: str) -> None:
    remark = judge_corpus_size(voices)
    assert remark.kind == kind
    assert said in remark.text


def list_texts(tables: CorpusTables) -> list[str]:
    return [remark.text for remark in list_remarks(tables)][1:]


def test_a_good_corpus_has_no_problem(tables: CorpusTables) -> None:
    add(tables, 1)
    assert list_texts(tables) == ["No row has a problem."]


def test_empty_files_and_other_problems_are_counted_apart(tables: CorpusTables) -> None:
    add(tables, 1, seconds=0, problem="is empty")
    add(tables, 2, seconds=0, problem="is empty")
    assert list_texts(tables) == ["2 files are empty."]
    add(tables, 3, problem="is silent")
    assert list_texts(tables) == ["2 files are empty.", "1 other row has a problem."]


def test_sample_rates_below_that_of_the_model_are_flagged(tables: CorpusTables) -> None:
    add(tables, 1, rate_hz=24_000)
    add(tables, 2, rate_hz=22_050)
    add(tables, 3, rate_hz=16_000)
    add(tables, 4, rate_hz=48_000)
    assert list_texts(tables)[1].startswith(
        "2 of 4 recordings have a sample rate of 16,000 or 22,050 Hz, less than the 24,000 Hz of the model: their "
        "sounds above 8 kHz are missing."
    )
