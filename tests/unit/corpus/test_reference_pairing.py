"""References are drawn from other recordings of the same speaker; a speaker with one recording is a problem."""

import json
from pathlib import Path

import pytest

from higgs_trainer.corpus.reference_pairing import pair_references
from higgs_trainer.manifest.rows import read_rows

SPEAKERS = {"ann": 7, "ben": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for speaker, count in SPEAKERS.items():
        for i in range(count):
            (tmp_path / f"{speaker}{i}.wav").write_text(f"{speaker}{i}")
    return tmp_path


def read(folder: Path, rows: list[dict[str, object]]):
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return read_rows(folder / "m.jsonl")


def rows_of(*speakers: str) -> list[dict[str, object]]:
    return [
        {"audio": f"{speaker}{i}.wav", "text": f"{speaker} {i}", "speaker": speaker}
        for speaker in speakers
        for i in range(SPEAKERS[speaker])
    ]


def test_each_row_gets_another_clip_of_its_speaker(folder: Path) -> None:
    drawn = set()
    for seed in range(60):
        paired, problems = pair_references(read(folder, rows_of("ann", "ben")), seed=seed)
        assert not problems
        for row in paired:
            (reference,) = row.references
            assert row.task == "zero_shot_cloning"
            assert reference.speaker == row.speaker
            assert reference.audio != row.audio
            assert reference.text == f"{row.speaker} {reference.audio.stem[-1]}"
            drawn.add((row.audio.stem, reference.audio.stem))
    assert len(drawn) == 7 * 6 + 3 * 2  # over seeds, every pair


def test_the_draw_depends_on_the_seed_and_not_on_the_order(folder: Path) -> None:
    rows = rows_of("ann", "ben")

    def draw(rows: list[dict[str, object]], seed: int) -> dict[str, str]:
        paired, _ = pair_references(read(folder, rows), seed=seed)
        return {row.audio.stem: row.references[0].audio.stem for row in paired}

    assert draw(rows, 1) == draw(rows[::-1], 1) == draw(rows, 1)
    assert draw(rows, 1) != draw(rows, 2)
    ben = {name: reference for name, reference in draw(rows, 1).items() if name.startswith("ben")}
    assert draw(rows_of("ben"), 1) == ben  # other speakers change nothing


def test_a_speaker_without_another_recording_is_a_problem(folder: Path) -> None:
    (folder / "copy.wav").write_text("ann0")  # the same recording under another name is no other recording
    rows = [
        {"audio": "ann0.wav", "text": "a", "speaker": "ann"},
        {"audio": "copy.wav", "text": "a", "speaker": "ann"},
        {"audio": "ben0.wav", "text": "b"},
        {"audio": "ben1.wav", "text": "b", "speaker": "ben"},
    ]
    paired, problems = pair_references(read(folder, rows), seed=0)
    assert paired == []
    assert [(problem.line, problem.what[:17]) for problem in problems] == [
        (1, 'the speaker "ann"'),
        (2, 'the speaker "ann"'),
        (3, '"speaker" is miss'),
        (4, 'the speaker "ben"'),
    ]


def test_rows_with_references_or_turns_stay_unchanged(folder: Path) -> None:
    clip = {"audio": "ann1.wav", "text": "x"}
    rows = [
        *rows_of("ann")[2:],
        {"audio": "ann0.wav", "text": "a", "speaker": "ann", "references": [clip]},
        {"audio": "ann0.wav", "text": "b", "speaker": "ann", "turns": [clip]},
        {"audio": "ann0.wav", "text": "[SPEAKER0] a\n[SPEAKER1] b"},
    ]
    utterances = read(folder, rows)
    paired, problems = pair_references(utterances, seed=0)
    assert not problems
    assert paired[-3:] == utterances[-3:]
    assert all(reference.audio.stem != "ann0" for row in paired[:-3] for reference in row.references)
