"""An evaluation folder: what is written is read back, wherever it has been moved, and damage is an error."""

import json
import shutil
from pathlib import Path

import pytest

from higgs_trainer.errors import UserError
from higgs_trainer.evaluation.evaluation_folder import (
    HeardClip,
    Score,
    add_note,
    read_evaluation,
    write_evaluation,
)
from higgs_trainer.evaluation.figures import build_report, compute_differences, compute_figures
from higgs_trainer.evaluation.judging import JudgedClip


def judged_clip(model: str, number: int, word_errors: int, audio: str | None) -> JudgedClip:
    return JudgedClip(
        model=model,
        number=number,
        text=f"text {number}",
        audio=audio,
        transcript="“heard”",
        word_errors=word_errors,
        words=4,
        character_errors=0,
        characters=9,
        similarity=0.5 + number / 4,
        similarity_to_others=None,
        quality=None,
        stopped=number == 0,
        seconds=1.5,
        length_ratio=None,
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    clips = run / "evaluation" / "1-base"
    first = [judged_clip("m", number, number, str(clips / f"{number:04d}.wav")) for number in range(2)]
    second = [judged_clip("n", number, 2, None) for number in range(2)]
    report = build_report(
        [compute_figures(first, role="before", speed=2.0), compute_figures(second)],
        compute_differences(first, second),
    )
    write_evaluation(run / "evaluation", report, [*first, *second])
    return run


def test_what_is_written_is_read_back_from_wherever_it_was_moved(run: Path, tmp_path: Path) -> None:
    moved = shutil.move(run, tmp_path / "elsewhere")
    before, second = read_evaluation(moved).sets
    assert (before.name, second.name) == ("before", "n")
    assert before.clips == [
        HeardClip("text 0", moved / "evaluation/1-base/0000.wav", "“heard”", stopped=True, is_right=True),
        HeardClip("text 1", moved / "evaluation/1-base/0001.wav", "“heard”", stopped=False, is_right=False),
    ]
    assert [clip.audio for clip in second.clips] == [None, None]
    # Two sentences have no interval, and their smallest p is 0.5.
    assert before.scores["wer"] == Score(1 / 8)
    assert second.scores["wer"] == Score(0.5, p=0.5, num_compared=2)
    assert before.scores.keys() == {"wer", "cer", "similarity", "stopped"}
    assert (before.num_clips, second.num_clips) == (2, 2)


def test_a_note_stays_with_the_figures(run: Path, tmp_path: Path) -> None:
    add_note(run, "of the adapter")
    assert read_evaluation(run).note == "of the adapter"
    assert read_evaluation(run).sets[0].scores["wer"].value == 1 / 8
    add_note(tmp_path, "of nothing")
    assert read_evaluation(tmp_path) is None


def test_figures_of_other_judges_need_no_rows(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    report = {
        "schema": "higgs-trainer/evaluation/2",
        "models": [{"model": "after", "mos": {"value": 4}, "wer": None}],
    }
    (tmp_path / "evaluation" / "figures.json").write_text(json.dumps(report))
    (after,) = read_evaluation(tmp_path).sets
    assert (after.name, after.scores, after.clips) == ("after", {"mos": Score(4.0)}, [])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("figures.json", "{", r"figures\.json cannot be read"),
        ("figures.json", "\udcff", r"figures\.json cannot be read"),
        ("figures.json", "[]", 'must be "higgs-trainer/evaluation/2"'),
        ("figures.json", '{"models": []}', "is not an evaluation"),
        ("figures.json", '{"schema": "S", "models": 3}', '"models" must be a list'),
        ("figures.json", '{"schema": "S", "models": [{}]}', '"models" must be a list'),
        (
            "figures.json",
            '{"schema": "S", "models": [{"model": "m", "wer": 1}]}',
            '"wer" of "m" must be an object',
        ),
        (
            "figures.json",
            '{"schema": "S", "models": [{"model": "m", "wer": {}}]}',
            '"wer" of "m" must be an object',
        ),
        ("figures.json", '{"schema": "S", "models": [], "second_minus_first": 1}', "second_minus_first"),
        ("rows.jsonl", '{"text": "a"}\nno json\n', r"rows\.jsonl cannot be read"),
        ("rows.jsonl", '{"text": "a"}\n{"text": 1}\n', r"rows\.jsonl:2: "),
    ],
)
def test_damage_is_an_error_that_names_the_file(run: Path, file: str, content: str, message: str) -> None:
    content = content.replace('"S"', '"higgs-trainer/evaluation/2"')
    (run / "evaluation" / file).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message):
        read_evaluation(run)
