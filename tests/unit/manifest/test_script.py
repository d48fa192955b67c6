"""What to say, from files: sentences, JSON lines, and every mistake in them with its line."""

import json
from pathlib import Path
from typing import Any

import pytest

from higgs_trainer.errors import UserError
from higgs_trainer.manifest.script import ScriptLine, Voice, read_script


def write_rows(folder: Path, *rows: Any) -> Path:
    path = folder / "say.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_sentence_a_line(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbfone\r\n two  three \r\n\n")
    assert read_script(tmp_path / "t.txt") == [ScriptLine("one"), ScriptLine("two three")]


def test_a_row_has_its_own_voice_and_seed(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    (tmp_path / "b.wav").touch()
    path = write_rows(
        tmp_path,
        {"text": "one"},
        {"text": "two", "ref_audio": "a.wav", "ref_text": "nine", "seed": 7, "language": "de"},
        {"text": "x", "references": [{"audio": "a.wav", "text": "p"}, {"audio": "b.wav", "text": "q"}]},
        {"text": "y", "task": "reference_in_system", "scene": "A room.", "ref_audio": "b.wav"},
        {"text": "z", "audio": "a.wav", "speaker": "anna"},
    )
    one, two, dialogue, in_system, row_of_a_manifest = read_script(path)
    assert one == ScriptLine("one")
    assert (two.seed, two.language) == (7, "de")
    assert [(clip.audio, clip.text) for clip in two.voice.references] == [(tmp_path / "a.wav", "nine")]
    assert [clip.text for clip in dialogue.voice.references] == ["p", "q"]
    assert in_system.voice.references_in_system
    assert (in_system.voice.scene, in_system.voice.references[0].text) == ("A room.", None)
    assert (row_of_a_manifest.audio, row_of_a_manifest.voice) == (tmp_path / "a.wav", Voice())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"txt": "one"}, "unknown field 'txt'; did you mean 'text'"),
        ({"scene": "here"}, "no 'text'"),
        ({"text": " "}, "'text' is empty"),
        ({"text": 5}, "'text' is a int, not a string"),
        ({"text": "one", "seed": "5"}, "'seed' is '5'"),
        ({"text": "one", "seed": -1}, "'seed' is -1"),
        ({"text": "one", "seed": True}, "'seed' is True"),
        ({"text": "one", "ref_audio": "here.wav"}, "'ref_audio' without 'ref_text'"),
        ({"text": "one", "ref_text": "nine"}, "'ref_text' without 'ref_audio'"),
        ({"text": "one", "ref_audio": "gone.wav", "ref_text": "nine"}, "gone.wav is no file"),
        ({"text": "one", "references": "here.wav"}, "'references' is no list of clips"),
        ({"text": "one", "references": [{"audio": "here.wav"}]}, r"no 'references\[0\].text'"),
        (
            {"text": "one", "references": [{"audio": "here.wav", "text": 1}]},
            r"'references\[0\].text' is a int",
        ),
        ({"text": "one", "task": "reference_in_system", "ref_audio": "here.wav"}, "give 'scene'"),
        ({"text": "one <|eot_id|>"}, "special token"),
        ([1], "a list where an object should be"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, row: Any, message: str) -> None:
    (tmp_path / "here.wav").touch()
    path = write_rows(tmp_path, {"text": "one"}, row, {"text": "three"})
    with pytest.raises(UserError, match=message) as caught:
        read_script(path)
    assert f"{path}:2: " in str(caught.value)


def test_all_mistakes_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("one\n\ntwo <|eot_id|>\nthree\n")
    with pytest.raises(UserError) as caught:
        read_script(tmp_path / "t.txt")
    assert "t.txt:2: an empty line" in str(caught.value)
    assert "t.txt:3: the special token" in str(caught.value)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_nothing_to_say_is_a_mistake(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.txt").write_text(content)
    with pytest.raises(UserError, match="nothing to say"):
        read_script(tmp_path / "t.txt")
