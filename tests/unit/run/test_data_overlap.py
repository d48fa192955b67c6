"""Evaluation data that is training data is counted: whole folders, recordings by content, and texts."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from higgs_trainer.dataset.overlap import count_same_folders, find_overlap
from higgs_trainer.dataset.prepared import PreparedRows, read_prepared
from higgs_trainer.dataset.prepared_writer import write_prepared
from higgs_trainer.run.data_overlap import describe_warnings, judge_overlap
from tiny import ToneCodec, draw_codes


def write(folder: Path, rows: list[tuple[str, int, str | None]]) -> PreparedRows:
    """Write rows of (text, seed of the codes, content hash)."""
    plain = [
        {
            "utterance_id": f"{folder.name}-{number}",
            "text": text,
            "task": "single_speaker",
            "codes_FK": draw_codes(5 + seed % 3, seed).numpy().astype(np.uint16),
            "num_references": 0,
            "context_texts": [],
            "context_codes": [],
            "text_changes": [],
            "duration_seconds": 0.2,
            "content_hash": content_hash,
        }
        for number, (text, seed, content_hash) in enumerate(rows)
    ]
    write_prepared(plain, folder, codec=ToneCodec(), source="test")
    return read_prepared(folder).rows


def test_the_same_samples_are_the_same_recording(tmp_path: Path) -> None:
    train = write(tmp_path / "train", [("one", 1, "a"), ("two", 2, "b"), ("three", 3, "c")])
    held_out = write(tmp_path / "eval", [("four", 1, "d"), ("five", 9, "c"), ("six", 8, "b")])
    overlap = find_overlap(train, held_out)
    assert (overlap.recordings, overlap.texts) == (("eval-1", "eval-2"), ())
    assert overlap.describe_recordings() == "2 of 3 (eval-1, eval-2)"
    assert replace(overlap, folders=1).describe_recordings() == "2 of 3 (eval-1, eval-2), 1 whole folder"
    assert replace(overlap, folders=2).describe_recordings().endswith(", 2 whole folders")


@pytest.mark.parametrize(("in_train", "in_eval"), [(None, None), (None, "x"), ("x", None)])
def test_without_hashes_of_samples_the_codes_decide(
    tmp_path: Path, in_train: str | None, in_eval: str | None
) -> None:
    train = write(tmp_path / "train", [("one", 1, in_train), ("two", 2, "b")])
    held_out = write(tmp_path / "eval", [("three", 4, "d"), ("four", 1, in_eval)])
    assert find_overlap(train, held_out).recordings == ("eval-1",)


def test_texts_are_compared_by_their_words(tmp_path: Path) -> None:
    train = write(tmp_path / "train", [("One, two!", 1, "a"), ("हिंदी", 2, "b"), ("…", 3, "c")])
    texts = ["one two", "ONE  TWO.", "one three", "हिंदी।", "...", "…"]
    held_out = write(tmp_path / "eval", [(text, 10 + i, f"e{i}") for i, text in enumerate(texts)])
    overlap = find_overlap(train, held_out)
    assert overlap.texts == ("eval-0", "eval-1", "eval-3", "eval-5")
    assert overlap.recordings == ()


def test_a_folder_is_the_same_under_a_link_and_as_a_copy(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / name, [(name, 1, name)])
    (tmp_path / "link").symlink_to("a")
    shutil.copytree(tmp_path / "b", tmp_path / "copy")
    names = ("link", "copy", "c")
    paths = [tmp_path / name for name in names]
    hashes = [read_prepared(path).card.content_hash for path in paths]
    train = [tmp_path / "a", tmp_path / "b"]
    train_hashes = [read_prepared(path).card.content_hash for path in train]
    assert count_same_folders(train, train_hashes, paths, hashes) == 2
    assert count_same_folders(train, ["other"] * 2, paths, hashes) == 1


def test_recordings_are_a_louder_warning_than_texts(tmp_path: Path) -> None:
    train = write(tmp_path / "train", [("one", 1, "a"), ("two", 2, "b")])
    same_text = find_overlap(train, write(tmp_path / "texts", [("One.", 3, "c"), ("six", 4, "d")]))
    same_recording = find_overlap(train, write(tmp_path / "eval", [("six", 1, "a")]))
    nothing = find_overlap(train, write(tmp_path / "new", [("six", 5, "e")]))
    assert [result.severity for result in judge_overlap(same_text)] == ["none", "warning"]
    assert [result.severity for result in judge_overlap(same_recording)] == ["serious", "none"]
    assert [result.found for result in judge_overlap(nothing)] == ["0 of 1", "0 of 1"]
    assert all(result.passed for result in judge_overlap(same_recording))
    (line,) = describe_warnings(same_text)
    assert line.startswith("warning: evaluation texts that are training data: 1 of 2 (texts-0); ")
    (line,) = describe_warnings(same_recording)
    assert "! WARNING !" in line
    assert "recordings that are training data: 1 of 1 (eval-0); the evaluation measures" in line
    assert [*describe_warnings(nothing), *describe_warnings(None), *judge_overlap(None)] == []
