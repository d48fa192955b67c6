"""One pass finds every problem of a manifest, with its line and its remedy."""

import json
from pathlib import Path

import pytest

from higgs_trainer.errors import ManifestError, UserError
from higgs_trainer.manifest.row_checker import RowRules
from higgs_trainer.manifest.rows import read_rows
from higgs_trainer.manifest.tasks import NEEDS
from higgs_trainer.manifest.utterance import Clip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Create a folder `data/` with two files in place of recordings, and one file outside it."""
    data = tmp_path / "data"
    data.mkdir()
    for path in (data / "a.wav", data / "b.wav", tmp_path / "outside.wav"):
        path.write_bytes(path.stem.encode())
    return data


def write_rows(folder: Path, *rows: object) -> Path:
    path = folder / "m.jsonl"
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8"
    )
    return path


def find_problems(folder: Path, *rows: object) -> list[tuple[int, str, str]]:
    with pytest.raises(ManifestError) as caught:
        read_rows(write_rows(folder, *rows))
    return [(problem.line, problem.what, problem.what_to_do) for problem in caught.value.problems]


def test_a_row_with_all_fields(folder: Path) -> None:
    row = {"audio": "a.wav", "text": " Hé llo ", "speaker": "s", "language": "fr", "scene": "quiet"}
    clone = {"audio": "a.wav", "text": "x", "ref_audio": "b.wav", "ref_text": "y", "scene": None}
    first, second = read_rows(write_rows(folder, row, "", clone))
    assert (first.utterance_id, first.line) == ("a-00001", 1)
    assert (first.text, first.speaker, first.language, first.scene) == ("Hé llo", "s", "fr", "quiet")
    assert (first.references, first.turns, first.reward) == ((), (), None)
    assert (second.utterance_id, second.line) == ("a-00003", 3)
    assert second.audio == folder / "a.wav"
    assert second.references == (Clip(folder / "b.wav", "y"),)
    assert (first.task, second.task) == ("single_speaker", "zero_shot_cloning")
    assert (first.text_changes, second.text_changes) == (("white space",), ())


def test_windows_files_are_read(folder: Path) -> None:
    path = folder / "m.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"audio": "a.wav", "text": "x"}\r\n\r\n{"audio": "b.wav", "text": "y"}\r\n'
    )
    assert [(row.text, row.line) for row in read_rows(path)] == [("x", 1), ("y", 3)]


def test_a_line_separator_inside_a_text_does_not_end_the_row(folder: Path) -> None:
    (row,) = read_rows(write_rows(folder, '{"audio": "a.wav", "text": "x\u2028y"}'))
    assert row.text == "x\ny"


BAD_ROWS = {
    "the line is not JSON": ("{audio: a.wav}", "the line is not JSON"),
    "truncated": ('{"audio": "a.wav", "text": "x', "the line is not JSON"),
    "deeply nested": ("[" * 100_000, "the line is not JSON"),
    "not an object": ([1], "the line is a list, not an object"),
    "no text": ({"audio": "a.wav"}, '"text" is missing'),
    "no audio": ({"text": "x"}, '"audio" is missing'),
    "empty text": ({"audio": "a.wav", "text": " \t"}, '"text" is empty'),
    "text of another type": ({"audio": "a.wav", "text": 3}, '"text" is of type int'),
    "half a surrogate": ('{"audio": "a.wav", "text": "\\ud800"}', "half of a surrogate pair"),
    "unknown field": ({"audio": "a.wav", "text": "x", "speeker": "s"}, 'unknown field "speeker"'),
    "key twice": ('{"audio": "a.wav", "text": "x", "text": "y"}', '"text" is given 2 times'),
    "NaN": ('{"audio": "a.wav", "text": "x", "speaker": NaN}', "NaN is not JSON"),
    "special token": ({"audio": "a.wav", "text": "x <|eot_id|>"}, 'special token "<|eot_id|>"'),
    "special token in a scene": (
        {"audio": "a.wav", "text": "x", "scene": "<|scene_desc_end|>"},
        'special token "<|scene_desc_end|>"',
    ),
    "special token in a turn": (
        {"audio": "a.wav", "text": "x", "turns": [{"audio": "b.wav", "text": "<|AUDIO_OUT|>"}]},
        '"turns[0].text" contains the special token',
    ),
    "reward in words": ({"audio": "a.wav", "text": "x", "reward": "1"}, '"reward" is of type str'),
    "infinite reward": ('{"audio": "a.wav", "text": "x", "reward": 1e999}', '"reward" is inf'),
    "references as text": ({"audio": "a.wav", "text": "x", "references": "b.wav"}, "not a list of clips"),
    "no references": ({"audio": "a.wav", "text": "x", "references": []}, "not a list of clips"),
    "more references than a prompt can hold": (
        {"audio": "a.wav", "text": "x", "references": [{"audio": "b.wav", "text": "y"}] * 1001},
        '"references" has 1001 clips, more than 1000',
    ),
    "references twice": (
        {"audio": "a.wav", "text": "x", "references": [{"audio": "b.wav", "text": "y"}], "ref_text": "y"},
        '"references" is given together with',
    ),
    "a clip without words": (
        {"audio": "a.wav", "text": "x", "references": [{"audio": "b.wav"}]},
        '"references[0].text" is missing',
    ),
    "a clip with another field": (
        {"audio": "a.wav", "text": "x", "turns": [{"audio": "b.wav", "text": "y", "txt": "y"}]},
        'unknown field "turns[0].txt"',
    ),
    "unknown task": ({"audio": "a.wav", "text": "x", "task": "cloning"}, "unknown task"),
    "a task without its reference": (
        {"audio": "a.wav", "text": "x", "task": "zero_shot_cloning"},
        'the fields of the row make it "single_speaker"',
    ),
    "in the system message without a scene": (
        {"audio": "a.wav", "text": "x", "task": "reference_in_system", "ref_audio": "b.wav"},
        'the row has no "scene"',
    ),
    "a speaker without a reference": (
        {"audio": "a.wav", "text": "[SPEAKER2] x", "references": [{"audio": "b.wav", "text": "y"}] * 2},
        "[SPEAKER2], but the row has only 2 references",
    ),
    "two voices and one reference": (
        {"audio": "a.wav", "text": "[SPEAKER0] x [SPEAKER1] y", "ref_audio": "b.wav", "ref_text": "z"},
        "[SPEAKER1], but the row has only 1 reference",
    ),
    "a speaker's tag in a reference": (
        {"audio": "a.wav", "text": "x", "references": [{"audio": "b.wav", "text": "[SPEAKER0] y"}] * 2},
        "the text of a reference has a [SPEAKER] tag",
    ),
    "missing file": ({"audio": "c.wav", "text": "x"}, '"audio" does not exist: c.wav'),
    "a folder": ({"audio": ".", "text": "x"}, '"audio" is a folder, not a file: .'),
    "NUL in a path": ({"audio": "a\0.wav", "text": "x"}, '"audio" is not a valid path'),
    "a name too long": ({"audio": "a" * 5000, "text": "x"}, '"audio" is not a valid path'),
    "outside": ({"audio": "../outside.wav", "text": "x"}, '"audio" is outside the folder of the manifest'),
    "outside, absolute": (
        {"audio": "/etc/hostname", "text": "x"},
        '"audio" is outside the folder of the manifest',
    ),
    "reference without sound": (
        {"audio": "a.wav", "text": "x", "ref_text": "y"},
        'given without "ref_audio"',
    ),
    "reference missing": (
        {"audio": "a.wav", "text": "x", "ref_audio": "c.wav", "ref_text": "y"},
        '"ref_audio" does not exist',
    ),
    "reference is the target": (
        {"audio": "a.wav", "text": "x", "ref_audio": "./a.wav", "ref_text": "x"},
        '"ref_audio" is the same recording as "audio"',
    ),
}


@pytest.mark.parametrize(("row", "what"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_one_problem(folder: Path, row: object, what: str) -> None:
    good = {"audio": "b.wav", "text": "fine"}
    ((line, found, what_to_do),) = find_problems(folder, good, row, good)
    assert line == 2
    assert what in found
    assert what_to_do


def test_a_misspelt_field_suggests_the_closest_name(folder: Path) -> None:
    ((_, _, what_to_do),) = find_problems(folder, {"audio": "a.wav", "text": "x", "speeker": "s"})
    assert '"speaker"' in what_to_do


def test_all_problems_of_all_rows_are_reported_together(folder: Path) -> None:
    found = find_problems(
        folder, {"text": "", "wrds": 1}, {"audio": "b.wav", "text": "fine"}, "{", {"audio": "c.wav"}
    )
    assert [line for line, _, _ in found] == [1, 1, 1, 3, 4, 4]


def test_the_message_names_file_and_line(folder: Path) -> None:
    path = write_rows(folder, {"audio": "a.wav", "text": ""})
    with pytest.raises(ManifestError, match="1 problem in the data") as caught:
        read_rows(path)
    assert f'{path}:1: "text" is empty. Add the words that are spoken.' in str(caught.value)


def test_a_link_out_of_the_folder_is_a_problem(folder: Path) -> None:
    (folder / "link.wav").symlink_to(folder.parent / "outside.wav")
    row = {"audio": "link.wav", "text": "x"}
    ((_, what, what_to_do),) = find_problems(folder, row)
    assert "outside the folder of the manifest" in what
    assert "--allow-outside" in what_to_do
    assert len(read_rows(folder / "m.jsonl", RowRules(allow_outside=True))) == 1


def test_a_loop_of_links(folder: Path) -> None:
    (folder / "loop.wav").symlink_to("loop.wav")
    ((_, what, _),) = find_problems(folder, {"audio": "loop.wav", "text": "x"})
    assert '"audio" is not a valid path' in what


def test_a_reference_that_is_a_link_to_the_target(folder: Path) -> None:
    (folder / "copy.wav").symlink_to("a.wav")
    row = {"audio": "a.wav", "text": "x", "ref_audio": "copy.wav", "ref_text": "x"}
    ((_, what, _),) = find_problems(folder, row)
    assert "same recording" in what


@pytest.mark.parametrize("field", ["references", "turns"])
def test_a_clip_that_is_a_copy_of_the_target(folder: Path, field: str) -> None:
    """A byte-for-byte copy with another name would leak the target too, unless the user allows it."""
    (folder / "copy.wav").write_bytes((folder / "a.wav").read_bytes())
    row = {"audio": "a.wav", "text": "x", field: [{"audio": "copy.wav", "text": "x"}]}
    ((_, what, what_to_do),) = find_problems(folder, row)
    assert "same recording" in what
    assert "--allow-own-reference" in what_to_do
    assert len(read_rows(folder / "m.jsonl", RowRules(allow_own_reference=True))) == 1


CLIP = {"audio": "b.wav", "text": "y"}
TASKS = {
    "single_speaker": {},
    "multi_speaker": {"text": "[SPEAKER0] x\n[SPEAKER1] y"},
    "zero_shot_cloning": {"references": [CLIP]},
    "multi_speaker_cloning": {"references": [CLIP, CLIP]},
    "several_turns": {"references": [CLIP], "turns": [CLIP, CLIP]},
    "reference_in_system": {"references": [CLIP, CLIP], "scene": "A hall.", "task": "reference_in_system"},
}


@pytest.mark.parametrize("task", TASKS)
def test_the_task_follows_from_the_fields(folder: Path, task: str) -> None:
    (row,) = read_rows(write_rows(folder, {"audio": "a.wav", "text": "x", **TASKS[task]}))
    assert row.task == task
    assert len(row.clips) == sum(len(TASKS[task].get(field, ())) for field in ("references", "turns"))


@pytest.mark.parametrize("task", [task for task in TASKS if task != "reference_in_system"])
def test_the_remedy_for_another_task_is_what_its_rows_have(folder: Path, task: str) -> None:
    fields = TASKS["zero_shot_cloning" if task != "zero_shot_cloning" else "single_speaker"]
    ((_, _, what_to_do),) = find_problems(folder, {"audio": "a.wav", "text": "x", **fields, "task": task})
    assert what_to_do == f'Remove "task", or give the row {NEEDS[task]}.'


def test_a_reference_without_words(folder: Path) -> None:
    row = {"audio": "a.wav", "text": "x", "ref_audio": "b.wav"}
    ((line, what, _),) = find_problems(folder, row | {"ref_text": "y"}, row)
    assert (line, what) == (2, '"ref_audio" is given without "ref_text"')


def test_a_reference_in_the_system_message_needs_no_words(folder: Path) -> None:
    row = {"audio": "a.wav", "text": "x", "task": "reference_in_system", "scene": "A hall."}
    (found,) = read_rows(write_rows(folder, row | {"ref_audio": "b.wav"}))
    assert found.references == (Clip(folder / "b.wav", None),)


def test_an_empty_manifest(folder: Path) -> None:
    ((line, what, _),) = find_problems(folder, "", "  ")
    assert (line, what) == (0, "there are no rows")


def test_a_manifest_that_cannot_be_read(folder: Path) -> None:
    with pytest.raises(UserError, match=r"none.jsonl cannot be read \(No such file"):
        read_rows(folder / "none.jsonl")
    (folder / "m.jsonl").write_bytes(b'{"text": "\xe9"}')
    with pytest.raises(ManifestError, match=r"m.jsonl:1: the line is not UTF-8.*\. Save the file as UTF-8"):
        read_rows(folder / "m.jsonl")
