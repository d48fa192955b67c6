"""`prepare` turns a manifest into a complete dataset, or writes nothing."""

import json
import os
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from higgs_trainer.audio.files import write_audio
from higgs_trainer.corpus.prepare import prepare
from higgs_trainer.dataset.prepared import CARD_NAME, build_features, check_codec, read_prepared
from higgs_trainer.errors import CheckpointError, ManifestError, UserError
from higgs_trainer.run_folder import CHECKSUMS_FILE

FRAME_SAMPLES = 960


@dataclass
class CountingCodec:
    """Three codebooks of 40000 codes (more than int16 holds). Cell (f, k) is `first + 100 f + k`."""

    name: str = "counting"
    fingerprint: str = "f1"
    revision: str | None = None
    sample_rate_hz: int = 24_000
    frames_per_second: float = 25.0
    num_codebooks: int = 3
    codebook_size: int = 40_000
    first: int = 39_000
    calls: int = 0

    def encode(self, waveform_S: Tensor) -> Tensor:
        self.calls += 1
        num_frames = len(waveform_S) // FRAME_SAMPLES
        return self.first + 100 * torch.arange(num_frames)[:, None] + torch.arange(3)

    def encode_batch(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        return [self.encode(waveform_S) for waveform_S in waveforms]

    def decode(self, codes_FK: Tensor) -> Tensor:
        raise NotImplementedError


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Write a row of 5 frames, and a row of 7 frames with a reference of 4."""
    for name, num_frames in (("a", 5), ("b", 7), ("ref", 4)):
        write_audio(tmp_path / f"{name}.wav", torch.rand(num_frames * FRAME_SAMPLES) - 0.5)
    rows = [
        {"audio": "a.wav", "text": "one", "speaker": "s", "language": "en", "scene": "quiet"},
        {"audio": "b.wav", "text": "two", "ref_audio": "ref.wav", "ref_text": "three", "reward": 0.5},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "m.jsonl"


def quiet(items: Iterable[Any], description: str, total: int | None) -> Iterable[Any]:
    return items


def test_rows_and_card(manifest: Path, tmp_path: Path) -> None:
    codec = CountingCodec()
    done = prepare(manifest, tmp_path / "new" / "out", codec=codec, progress=quiet)
    prepared = read_prepared(tmp_path / "new" / "out")
    assert codec.calls == 3
    assert done.card == prepared.card
    assert prepared.rows.features == build_features()
    first, second = prepared.rows
    assert (first["utterance_id"], first["text"], first["speaker"]) == ("a-00001", "one", "s")
    assert (first["language"], first["scene"], len(first["codes_FK"])) == ("en", "quiet", 5)
    assert first["codes_FK"].tolist() == [[39_000 + 100 * f + k for k in range(3)] for f in range(5)]
    assert (first["task"], first["num_references"], first["reward"]) == ("single_speaker", 0, None)
    assert (first["context_codes"], first["context_texts"]) == ([], [])
    assert (second["task"], second["num_references"], second["reward"]) == ("zero_shot_cloning", 1, 0.5)
    (reference_FK,) = second["context_codes"]
    assert (second["context_texts"], reference_FK.shape, reference_FK.dtype) == (
        ["three"],
        (4, 3),
        torch.int64,
    )
    assert reference_FK[3].tolist() == [39_300, 39_301, 39_302]
    assert second["duration_seconds"] == pytest.approx(7 / 25)
    card = prepared.card
    assert (card.codec_name, card.codec_fingerprint) == ("counting", "f1")
    assert (card.num_codebooks, card.codebook_size, card.frames_per_second) == (3, 40_000, 25.0)
    assert (card.utterances, card.manifest) == (2, "m.jsonl")
    assert card.tasks == {"single_speaker": 1, "zero_shot_cloning": 1}
    assert card.text_changes == {}
    assert card.hours == pytest.approx(12 / 25 / 3600, abs=1e-6)


def test_all_problems_are_reported_before_anything_is_written(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "ref.wav").write_bytes(b"no sound")
    with manifest.open("a") as file:
        file.write('{"audio": "a.wav", "text": ""}\n')
    codec = CountingCodec()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ManifestError) as caught:
        prepare(manifest, tmp_path / "out", codec=codec, progress=quiet)
    found = [(problem.line, problem.what) for problem in caught.value.problems]
    assert [line for line, _ in found] == [2, 3]
    assert "ref.wav cannot be read as audio" in found[0][1]
    assert codec.calls == 0
    assert sorted(tmp_path.iterdir()) == before


def test_a_failure_while_encoding_leaves_nothing(manifest: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=r"outside \[0, 40000\)"):
        prepare(manifest, tmp_path / "out", codec=CountingCodec(first=39_500), progress=quiet)
    with pytest.raises(CheckpointError, match=r"shape \(7, 3\).*expected \(frames, 4\)"):
        prepare(manifest, tmp_path / "out", codec=CountingCodec(num_codebooks=4), progress=quiet)
    assert sorted(tmp_path.iterdir()) == before


def test_a_codec_of_another_rate_is_refused(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="16000 Hz"):
        prepare(manifest, tmp_path / "out", codec=CountingCodec(sample_rate_hz=16_000), progress=quiet)


@pytest.mark.parametrize("rename", range(1, 12))
def test_a_kill_at_any_rename_leaves_the_old_dataset_or_the_new_one(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rename: int
) -> None:
    out = tmp_path / "out"
    prepare(manifest, out, codec=CountingCodec(fingerprint="old"), progress=quiet)
    replace, calls = os.replace, 0

    def kill_at_the_rename(*paths: Any) -> None:
        nonlocal calls
        calls += 1
        if calls >= rename:
            raise KeyboardInterrupt
        replace(*paths)

    was_killed = False
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", kill_at_the_rename)
        try:
            prepare(manifest, out, codec=CountingCodec(fingerprint="new"), overwrite=True, progress=quiet)
        except KeyboardInterrupt:
            was_killed = True
    assert was_killed == (calls >= rename)
    found = read_prepared(out)
    assert (found.card.codec_fingerprint == "new") >= (not was_killed)
    assert found.rows[0]["text"] == "one"
    again = prepare(manifest, out, codec=CountingCodec(fingerprint="new"), overwrite=True, progress=quiet)
    assert read_prepared(out).card == again.card
    assert not list(tmp_path.glob("_*"))


def test_an_output_is_replaced_only_with_overwrite(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    prepare(manifest, out, codec=CountingCodec(fingerprint="old"), progress=quiet)
    with pytest.raises(UserError, match="--overwrite"):
        prepare(manifest, out, codec=CountingCodec(), progress=quiet)
    assert read_prepared(out).card.codec_fingerprint == "old"
    prepare(manifest, out, codec=CountingCodec(fingerprint="new"), overwrite=True, progress=quiet)
    assert read_prepared(out).card.codec_fingerprint == "new"
    assert oct(out.stat().st_mode & 0o777) == "0o755"


def test_overwriting_deletes_nothing_else(manifest: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not a prepared dataset"):
        prepare(manifest, other, codec=CountingCodec(), overwrite=True, progress=quiet)
    prepare(manifest, out, codec=CountingCodec(), progress=quiet)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt"):
        prepare(manifest, out, codec=CountingCodec(), overwrite=True, progress=quiet)
    assert (out / "notes.txt").read_text() == "mine"


def test_another_folder_is_not_opened_as_a_dataset(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="higgs-trainer prepare"):
        read_prepared(tmp_path)
    out = tmp_path / "out"
    prepare(manifest, out, codec=CountingCodec(), progress=quiet)
    (out / CHECKSUMS_FILE).unlink()
    card = json.loads((out / CARD_NAME).read_text())
    (out / CARD_NAME).write_text(json.dumps(card | {"utterances": 3}))
    with pytest.raises(CheckpointError, match="rows"):
        read_prepared(out)
    (out / CARD_NAME).write_text(json.dumps(card | {"colour": 3}))
    with pytest.raises(CheckpointError, match="colour"):
        read_prepared(out)
    (out / CARD_NAME).write_text(json.dumps(card))
    (out / "dataset_info.json").unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        read_prepared(out)


def test_codes_of_another_codec_are_refused(manifest: Path, tmp_path: Path) -> None:
    card = prepare(manifest, tmp_path / "out", codec=CountingCodec(), progress=quiet).card
    check_codec(card, CountingCodec(name="renamed"))
    with pytest.raises(CheckpointError, match=r"m\.jsonl.*counting \(f1\).*\(f2\).*Prepare the data again"):
        check_codec(card, CountingCodec(fingerprint="f2"))


def test_a_data_loader_worker_opens_the_files_again(manifest: Path, tmp_path: Path) -> None:
    prepare(manifest, tmp_path / "out", codec=CountingCodec(), progress=quiet)
    rows = read_prepared(tmp_path / "out").rows
    pickled = pickle.dumps(rows)
    assert b"data-00000-of-00001.arrow" in pickled
    assert rows[1]["codes_FK"].numpy().astype("uint16").tobytes() not in pickled
    assert torch.equal(pickle.loads(pickled)[1]["codes_FK"], rows[1]["codes_FK"])
    with pytest.raises(IndexError):
        rows[2]
