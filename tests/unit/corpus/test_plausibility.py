"""Problems that only the whole corpus shows: implausible transcripts and duplicate recordings."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from higgs_trainer.corpus.measurements import Limits, Measurement
from higgs_trainer.corpus.plausibility import find_duplicates, find_odd_paces
from higgs_trainer.corpus.work_directory.corpus_tables import CorpusTables
from higgs_trainer.manifest.text import count_spoken
from higgs_trainer.manifest.utterance import Utterance


@pytest.mark.parametrize(
    ("text", "count", "unit"),
    [
        ("Two words.", 2, "words"),
        ("[SPEAKER0] Hello <SE>[Laughter]</SE> there [laugh]", 2, "words"),
        ("room 2024, 3rd", 6, "words"),
        ("- ... 🙂 !", 0, "words"),
        ("cafe\u0301 नमस्ते दुनिया", 3, "words"),
        ("二つです", 4, "characters"),
        ("สวัสดี", 6, "characters"),
        ("안녕 하세요", 2, "words"),
    ],
)
def test_spoken_words_and_characters_are_counted(text: str, count: int, unit: str) -> None:
    assert count_spoken(text) == (count, unit)


MEASUREMENT = Measurement(
    content_hash="",
    seconds=1.5,
    speech_seconds=1.0,
    sample_rate_hz=24_000,
    channels=1,
    peak_dbfs=-6.0,
    loudness_dbfs=-20.0,
    clipped_percent=0.0,
    cancelled=False,
)


def make_tables(folder: Path, rows: Sequence[dict[str, Any]]) -> CorpusTables:
    """Store one target per row. The fields of a row are those of an utterance or of a measurement."""
    tables = CorpusTables(folder / "rows.sqlite", new=True)
    for number, row in enumerate(rows):
        measured = {"content_hash": f"hash {number}"} | {
            k: v for k, v in row.items() if hasattr(MEASUREMENT, k)
        }
        said = {"text": f"words {number}"} | {k: v for k, v in row.items() if not hasattr(MEASUREMENT, k)}
        utterance = Utterance(audio=Path(f"{number}.wav"), file=Path("m.jsonl"), line=number + 1, **said)
        measurement = replace(MEASUREMENT, **measured)
        tables.add_recording(number, 0, utterance, utterance.recording, utterance.text, measurement)
    return tables


def speak(words_per_second: float, *, language: str = "en", word: str = "word ") -> dict[str, Any]:
    return {"text": word * 12, "speech_seconds": 12 / words_per_second, "language": language}


EVEN = [speak(2.0 + 0.05 * (i % 7)) for i in range(40)]
UNEVEN = [speak(2.0 * 3.0 ** ((i % 9) / 4 - 1)) for i in range(40)]  # from 0.7 to 6 words a second


def find_odd(folder: Path, rows: Sequence[dict[str, Any]], limits: Limits = Limits()) -> list[int]:
    return [number for number, _ in find_odd_paces(make_tables(folder, rows), limits)]


def test_an_implausible_pace_is_a_problem(tmp_path: Path) -> None:
    assert find_odd(tmp_path, EVEN) == []
    assert find_odd(tmp_path, [*EVEN, speak(9.0), speak(0.5), speak(8.0), speak(0.6)]) == [40, 41]
    assert find_odd(tmp_path, [*EVEN, speak(9.0)], Limits(max_pace_factor=5.0)) == []
    ((_, problem),) = find_odd_paces(make_tables(tmp_path, [*EVEN, speak(24.0)]), Limits())
    assert str(problem) == (
        "m.jsonl:41: 40.wav has 0.5 s of speech for 12 words: 24.0 per second, against 2.1 in the corpus. "
        "Check that this is its transcript. Correct it, or raise --max-pace-factor."
    )


def test_a_corpus_of_uneven_pace_is_allowed_a_larger_spread(tmp_path: Path) -> None:
    assert find_odd(tmp_path, [*UNEVEN, speak(9.0), speak(100.0)]) == [41]


def test_many_wrong_rows_do_not_hide_one_another(tmp_path: Path) -> None:
    assert find_odd(tmp_path, [*EVEN, *[speak(20.0)] * 12]) == list(range(40, 52))


def test_silence_has_no_pace(tmp_path: Path) -> None:
    assert find_odd(tmp_path, [*EVEN, speak(24.0) | {"peak_dbfs": -51.0}]) == []


def test_the_pace_of_few_rows_is_compared_with_that_of_speech_in_general(tmp_path: Path) -> None:
    assert find_odd(tmp_path, [*EVEN[:27], speak(18.0), speak(0.4)]) == []
    assert find_odd(tmp_path, [speak(18.0), speak(24.0), speak(0.4), speak(0.2)]) == [1, 3]
    assert find_odd(tmp_path, [speak(24.0), speak(0.2)], Limits(max_pace_factor=8.0)) == []
    hour = {"text": "five words are not enough", "speech_seconds": 3214.7}
    ((_, problem),) = find_odd_paces(make_tables(tmp_path, [hour]), Limits())
    assert "3214.7 s of speech for 5 words: 0.0016 per second, against 2.5 usually" in str(problem)


def test_one_or_two_words_have_no_pace(tmp_path: Path) -> None:
    drawn_out = {"text": "Haalloo.", "speech_seconds": 2.5, "language": "en"}
    hurried = {"text": "Auw!", "speech_seconds": 0.05, "language": "en"}
    assert find_odd(tmp_path, [*EVEN, drawn_out, hurried]) == []
    assert find_odd(tmp_path, [drawn_out, hurried]) == []
    rows = [*EVEN, drawn_out | {"speech_seconds": 9.0}]
    ((_, problem),) = find_odd_paces(make_tables(tmp_path, rows), Limits())
    assert "40.wav has 9.0 s of speech for 1 word: 0.1 per second" in str(problem)


def test_short_texts_do_not_change_the_pace_of_the_corpus(tmp_path: Path) -> None:
    shouts = [{"text": "Ja!", "speech_seconds": 0.1, "language": "en"}] * 200
    assert find_odd(tmp_path, [*EVEN, *shouts]) == []


def test_empty_and_silent_recordings_are_no_duplicates_of_each_other(tmp_path: Path) -> None:
    empty = {"content_hash": "x", "peak_dbfs": -120.0, "seconds": 0.0, "speech_seconds": 0.0}
    rows = [empty | {"text": "one"}, empty | {"text": "two"}, empty | {"text": "two"}]
    assert list(find_duplicates(make_tables(tmp_path, rows), Limits())) == []


def test_languages_and_scripts_are_judged_separately(tmp_path: Path) -> None:
    japanese = [speak(12.0, word="語", language="ja")] * 40
    slow = [speak(0.4, language="xx")] * 40
    assert find_odd(tmp_path, [*EVEN * 3, *japanese, *slow]) == []
    assert find_odd(tmp_path, [*EVEN, *japanese, speak(60.0, word="語", language="ja")]) == [80]


def test_a_duplicate_recording_is_a_problem(tmp_path: Path) -> None:
    same: dict[str, Any] = {"content_hash": "x", "text": "one"}
    rows = [{}, same, same, same | {"text": "two"}, same | {"scene": "A hall."}, same | {"scene": "A hall."}]
    tables = make_tables(tmp_path, rows)
    found = {number: str(problem) for number, problem in find_duplicates(tables, Limits())}
    assert sorted(found) == [2, 3, 5]
    assert found[2].startswith("m.jsonl:3: 2.wav is the same recording as in line 2. Remove one")
    assert "4: 3.wav is the same recording as in line 2, but has other words. Correct the" in found[3]
    assert "6: 5.wav is the same recording as in line 5. Remove one" in found[5]
    assert [number for number, _ in find_duplicates(tables, Limits(allow_duplicates=True))] == [3]
