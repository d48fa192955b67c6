"""`higgs-trainer prepare` from files to a prepared dataset, with a codec like the embedded one."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from higgs_trainer.audio.files import write_audio
from higgs_trainer.audio.mel_codec import MelCodec
from higgs_trainer.cli import main
from higgs_trainer.dataset.prepared import read_prepared


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Create a folder with noise of 0.5 and 0.3 seconds and a codec, and a recording outside it."""
    folder = tmp_path / "data"
    for path, seconds in ((folder / "a.wav", 0.5), (folder / "b.wav", 0.3), (tmp_path / "outside.wav", 0.2)):
        write_audio(path, torch.rand(round(seconds * 24_000)) - 0.5)
    MelCodec.fit([torch.randn(24_000) * 0.1], codebook_size=5, seed=0, name="tiny").save_pretrained(
        folder / "codec"
    )
    return folder


def run_prepare(folder: Path, rows: Sequence[object], *options: str) -> int:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / "m.jsonl").write_text(text, encoding="utf-8")
    arguments = [
        "prepare",
        str(folder / "m.jsonl"),
        "-o",
        str(folder / "out"),
    ]
    if "--codec" not in options:
        arguments += ["--codec", str(folder / "codec")]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, *options])
    return int(stopped.value.code or 0)


def test_recordings_are_prepared(recordings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"audio": "a.wav", "text": "one"},
        {"audio": "b.wav", "text": "two", "ref_audio": "a.wav", "ref_text": "one"},
    ]
    assert run_prepare(recordings, rows) == 0
    assert "2 utterances, 0.00 h, codec tiny" in capsys.readouterr().out
    prepared = read_prepared(recordings / "out")
    codec = MelCodec.from_pretrained(recordings / "codec")
    first, second = prepared.rows
    assert prepared.card.codec_fingerprint == codec.fingerprint
    assert (first["codes_FK"].shape, second["codes_FK"].shape) == ((13, 8), (8, 8))
    assert torch.equal(torch.stack(second["context_codes"]), first["codes_FK"][None])
    assert codec.decode(first["codes_FK"]).shape == (13 * 960,)


def test_bad_input_is_reported_together_and_nothing_is_written(
    recordings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (recordings / "a.wav").read_bytes()
    (recordings / "broken.wav").write_bytes(whole[:1000])
    (recordings / "noise.wav").write_bytes(b"RIFFnoise")
    (recordings / "link.wav").symlink_to(recordings.parent / "outside.wav")
    rows = [
        {"audio": "a.wav", "text": "fine"},
        {"audio": "missing.wav", "text": "x"},
        {"audio": "broken.wav", "text": "x"},
        {"audio": "noise.wav", "text": "x"},
        {"audio": "a.wav", "text": "  "},
        {"audio": "a.wav", "text": "x", "speeker": "s"},
        {"audio": "../outside.wav", "text": "x"},
        {"audio": "link.wav", "text": "x"},
        '{"audio": "a.wav"',
    ]
    before = sorted(recordings.parent.rglob("*"))
    assert run_prepare(recordings, rows) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    header, *lines = captured.err[captured.err.index("error: ") :].splitlines()
    assert header == "error: 8 problems in the data. Nothing was written."
    for number, (line, what) in enumerate(
        [
            (2, '"audio" does not exist: missing.wav'),
            (3, "broken.wav ends early"),
            (4, "noise.wav cannot be read as audio"),
            (5, '"text" is empty'),
            (6, 'unknown field "speeker". Did you mean "speaker"?'),
            (7, '"audio" is outside the folder of the manifest: ../outside.wav'),
            (8, '"audio" is outside the folder of the manifest: link.wav'),
            (9, "not JSON"),
        ]
    ):
        assert f"{recordings / 'm.jsonl'}:{line}: " in lines[number]
        assert what in lines[number]
    assert sorted(recordings.parent.rglob("*")) == sorted([*before, recordings / "m.jsonl"])


def test_an_output_is_overwritten_only_with_the_option(
    recordings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"audio": "a.wav", "text": "one"}]
    assert run_prepare(recordings, rows) == 0
    assert run_prepare(recordings, rows) == 2
    assert "out is not empty" in capsys.readouterr().err
    assert run_prepare(recordings, [*rows, {"audio": "b.wav", "text": "two"}], "--overwrite") == 0
    assert read_prepared(recordings / "out").card.utterances == 2


def test_held_out_rows_are_prepared_too_and_counted(
    recordings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"audio": "a.wav", "text": "one"}, {"audio": "b.wav", "text": "two"}]
    assert run_prepare(recordings, rows, "--held-out", "50%", "--held-out-seed", "1") == 0
    printed = capsys.readouterr().out
    for side in ("train", "held_out"):
        assert f"{recordings / 'out' / side}: 1 utterance, 0.00 h" in printed
        assert read_prepared(recordings / "out" / side).card.utterances == 1
    assert "held out: 1 of 2 rows" in printed
    assert run_prepare(recordings, rows, "--held-out", "half") == 2
    assert "--held-out is half. Give a percentage" in capsys.readouterr().err
    assert run_prepare(recordings, rows, "--held-out-seed", "1") == 2
    assert "--held-out-seed has an effect only with --held-out" in capsys.readouterr().err


def test_a_name_that_is_not_utf_8_is_refused_before_anything_is_written(
    recordings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = recordings / "data.jsonl"
    data.write_text('{"audio": "a.wav", "text": "one"}\n', encoding="utf-8")
    before = sorted(recordings.iterdir())
    output = str(recordings / os.fsdecode(b"out-\xff"))
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", str(data), "-o", output, "--codec", str(recordings / "codec")])
    assert stopped.value.code == 2
    assert "--output: the name" in capsys.readouterr().err
    assert sorted(recordings.iterdir()) == before


def test_a_folder_without_a_codec_is_an_error(recordings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = recordings.parent / "empty"
    empty.mkdir()
    assert run_prepare(recordings, [{"audio": "a.wav", "text": "one"}], "--codec", str(empty)) == 2
    assert "contains no codec" in capsys.readouterr().err
    assert not (recordings / "out").exists()


def test_recordings_outside_the_folder_can_be_allowed(recordings: Path) -> None:
    assert run_prepare(recordings, [{"audio": "../outside.wav", "text": "x"}], "--allow-outside") == 0
