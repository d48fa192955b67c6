"""Rows for `generate` and `evaluate`: plain sentences, or JSON lines in which audio is optional."""

import json
from pathlib import Path
from typing import Any

import pytest

from higgs_trainer.errors import UserError
from higgs_trainer.manifest.row_checker import SENTENCES
from higgs_trainer.manifest.rows import read_rows
from higgs_trainer.manifest.utterance import Clip, Utterance, Voice


def write_rows(folder: Path, *rows: Any) -> Path:
    path = folder / "say.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_text_file_has_one_sentence_per_line(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbfone\r\n two  three \r\n\n")
    rows = read_rows(tmp_path / "t.txt", SENTENCES)
    assert [(row.text, row.audio, row.line, row.voice) for row in rows] == [
        ("one", None, 1, Voice()),
        ("two three", None, 2, Voice()),
    ]


def test_a_sentence_that_looks_like_a_table_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("I heard song.mp3, and liked it\naudio|text\n")
    assert len(read_rows(tmp_path / "t.txt", SENTENCES)) == 2


def test_a_row_may_have_its_own_voice_and_seed(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    (tmp_path / "b.wav").touch()
    path = write_rows(
        tmp_path,
        {"text": "one"},
        {"text": "two", "ref_audio": "a.wav", "ref_text": "nine", "seed": 7, "language": "de"},
        {"text": "x", "references": [{"audio": "a.wav", "text": "p"}, {"audio": "b.wav", "text": "q"}]},
        {"text": "y", "task": "reference_in_system", "scene": "A room.", "ref_audio": "b.wav"},
        {"text": "z", "audio": "a.wav", "speaker": "anna", "reward": 1},
        {"text": "t", "turns": [{"audio": "b.wav", "text": "r"}]},
    )
    one, two, dialogue, in_system, row_of_a_manifest, later_turn = read_rows(path, SENTENCES)
    assert one == Utterance("one", utterance_id="sentence-00001", file=path, line=1)
    assert (two.seed, two.language) == (7, "de")
    assert two.voice.references == (Clip(tmp_path / "a.wav", "nine"),)
    assert [clip.text for clip in dialogue.voice.references] == ["p", "q"]
    assert in_system.voice == Voice("A room.", (Clip(tmp_path / "b.wav", None),), references_in_system=True)
    assert (row_of_a_manifest.audio, row_of_a_manifest.voice) == (tmp_path / "a.wav", Voice())
    assert later_turn.turns == (Clip(tmp_path / "b.wav", "r"),)


def test_audio_may_be_anywhere_and_may_be_the_reference(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (tmp_path / "a.wav").touch()
    row = {"text": "one", "audio": "../a.wav", "ref_audio": str(tmp_path / "a.wav"), "ref_text": "one"}
    (found,) = read_rows(write_rows(folder, row), SENTENCES)
    assert found.audio is not None
    assert found.audio.samefile(found.references[0].audio)


def test_a_missing_recording_is_an_error_of_the_code_that_needs_it() -> None:
    with pytest.raises(ValueError, match=r"say\.txt:3: the row has no audio"):
        _ = Utterance("one", file=Path("say.txt"), line=3).recording


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"txt": "one"}, 'unknown field "txt". Did you mean "text"'),
        ({"scene": "here"}, '"text" is missing'),
        ({"text": " "}, '"text" is empty'),
        ({"text": 5}, '"text" is of type int, not a string'),
        ({"text": "one", "seed": "5"}, "\"seed\" is '5'"),
        ({"text": "one", "seed": -1}, '"seed" is -1'),
        ({"text": "one", "seed": True}, '"seed" is True'),
        ({"text": "one", "seed": 2**63}, '"seed" is 9223372036854775808'),
        ({"text": "one", "ref_audio": "here.wav"}, '"ref_audio" is given without "ref_text"'),
        ({"text": "one", "ref_text": "nine"}, '"ref_text" is given without "ref_audio"'),
        (
            {"text": "one", "ref_audio": "gone.wav", "ref_text": "nine"},
            '"ref_audio" does not exist: gone.wav',
        ),
        ({"text": "one", "references": "here.wav"}, '"references" is not a list of clips'),
        ({"text": "one", "references": [{"audio": "here.wav"}]}, r'"references\[0\].text" is missing'),
        (
            {"text": "one", "references": [{"audio": "here.wav", "text": 1}]},
            r'"references\[0\].text" is of type int',
        ),
        ({"text": "one", "task": "reference_in_system", "ref_audio": "here.wav"}, "Describe a scene"),
        ({"text": "one <|eot_id|>"}, "special token"),
        ([1], "the line is a list, not an object"),
    ],
)
def test_a_problem_names_its_line(tmp_path: Path, row: Any, message: str) -> None:
    (tmp_path / "here.wav").touch()
    path = write_rows(tmp_path, {"text": "one"}, row, {"text": "three"})
    with pytest.raises(UserError, match=message) as caught:
        read_rows(path, SENTENCES)
    assert f"{path}:2: " in str(caught.value)


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("one\n\ntwo <|eot_id|>\nthree\n")
    with pytest.raises(UserError) as caught:
        read_rows(tmp_path / "t.txt", SENTENCES)
    assert "t.txt:2: the line is empty" in str(caught.value)
    assert 't.txt:3: "text" contains the special token' in str(caught.value)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_sentences_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.txt").write_text(content)
    with pytest.raises(UserError, match="there are no rows"):
        read_rows(tmp_path / "t.txt", SENTENCES)
