"""Each recording is encoded once, even after a failure, during a second run, and with rejected rows."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from higgs_trainer.audio.files import SAMPLE_RATE_HZ, read_audio, write_audio
from higgs_trainer.audio.loudness import measure_loudness
from higgs_trainer.corpus.measurements import Limits
from higgs_trainer.corpus.prepare import PreparedSummary, prepare
from higgs_trainer.corpus.work_directory.directory import WorkDirectory
from higgs_trainer.dataset.prepared import REJECTED_NAME, read_prepared
from higgs_trainer.errors import AudioError, ManifestError, UserError

FRAME_SAMPLES = 960


class Interrupted(Exception):
    """In place of a kill, a full disk or Ctrl-C."""


@dataclass
class RecordingCodec:
    """A codec with two codebooks that records its calls. A code is the largest sample of a frame in thousandths."""

    fingerprint: str = "f1"
    fail_after: int = 1000
    batches: list[list[int]] = field(default_factory=list)
    loudness_lufs: list[float] = field(default_factory=list)

    name = "recording"
    revision = None
    sample_rate_hz = SAMPLE_RATE_HZ
    frames_per_second = 25.0
    num_codebooks = 2
    codebook_size = 1001

    def encode_batch(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        if len(self.batches) == self.fail_after:
            raise Interrupted
        self.batches.append([len(waveform_S) // FRAME_SAMPLES for waveform_S in waveforms])
        self.loudness_lufs += [measure_loudness(waveform_S) for waveform_S in waveforms]
        return [self.encode(waveform_S) for waveform_S in waveforms]

    def encode(self, waveform_S: Tensor) -> Tensor:
        frames_FS = waveform_S[: len(waveform_S) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
        loudest_F = (frames_FS.abs().amax(dim=1) * 1000).long()
        return torch.stack([loudest_F, 1000 - loudest_F], dim=1)

    def decode(self, codes_FK: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def frames(self) -> list[int]:
        """The number of frames of each encoded recording, in order."""
        return [num_frames for batch in self.batches for num_frames in batch]


def quiet(items: Iterable[Any], description: str, total: int | None) -> Iterable[Any]:
    return items


def write_manifest(folder: Path, num_frames: Sequence[int], **fields: object) -> Path:
    rows = []
    for index, frames in enumerate(num_frames):
        write_audio(folder / f"{index}.wav", torch.rand(frames * FRAME_SAMPLES) - 0.5)
        rows.append({"audio": f"{index}.wav", "text": f"number {index}", **fields})
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "m.jsonl"


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., PreparedSummary]:
    """Return a function that prepares the manifest in `tmp_path` into `tmp_path / "out"`."""

    def run_prepare(codec: RecordingCodec, **options: Any) -> PreparedSummary:
        return prepare(tmp_path / "m.jsonl", tmp_path / "out", codec=codec, **{"progress": quiet, **options})

    return run_prepare


Run = Callable[..., PreparedSummary]


def test_clips_of_equal_length_are_encoded_together(tmp_path: Path, run: Run) -> None:
    write_manifest(tmp_path, [5, 9, 5, 7, 5, 9])
    codec = RecordingCodec()
    run(codec)
    assert codec.batches == [[9, 9], [7], [5, 5, 5]]
    rows = read_prepared(tmp_path / "out").rows
    assert [len(row["codes_FK"]) for row in rows] == [5, 9, 5, 7, 5, 9]
    for index, row in enumerate(rows):
        expected_FK = codec.encode(read_audio(tmp_path / f"{index}.wav"))
        assert row["codes_FK"].tolist() == expected_FK.tolist()


def test_a_batch_is_no_longer_than_the_limit(tmp_path: Path, run: Run) -> None:
    write_manifest(tmp_path, [5, 5, 5, 5, 5, 25])
    codec = RecordingCodec()
    run(codec, batch_seconds=0.4)
    assert codec.batches == [[25], [5, 5], [5, 5], [5]]


def test_a_run_resumes_an_interrupted_one(tmp_path: Path, run: Run) -> None:
    write_manifest(tmp_path, [5, 9, 6, 7, 8])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(Interrupted):
        run(RecordingCodec(fail_after=2))
    assert not (tmp_path / "out").exists()
    second = RecordingCodec()
    assert run(second).resumed == 2
    assert second.frames == [7, 6, 5]
    assert [len(row["codes_FK"]) for row in read_prepared(tmp_path / "out").rows] == [5, 9, 6, 7, 8]
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "out"])


def test_a_changed_recording_is_encoded_again(tmp_path: Path, run: Run) -> None:
    write_manifest(tmp_path, [5, 9, 6])
    with pytest.raises(Interrupted):
        run(RecordingCodec(fail_after=2))
    write_audio(tmp_path / "1.wav", torch.rand(9 * FRAME_SAMPLES) - 0.5)
    second = RecordingCodec()
    run(second)
    assert second.frames == [9, 5]


@pytest.mark.parametrize(
    "change", [{"fingerprint": "f2"}, {"loudness_lufs": -20.0}], ids=["codec", "loudness"]
)
def test_codes_of_other_settings_are_not_reused(tmp_path: Path, run: Run, change: dict[str, Any]) -> None:
    write_manifest(tmp_path, [5, 9])
    with pytest.raises(Interrupted):
        run(RecordingCodec(fail_after=1))
    second = RecordingCodec(fingerprint=change.pop("fingerprint", "f1"))
    assert run(second, **change).resumed == 0
    assert second.frames == [9, 5]


def test_a_rejected_run_keeps_the_codes_of_an_earlier_run(tmp_path: Path, run: Run) -> None:
    write_manifest(tmp_path, [5, 9])
    with pytest.raises(Interrupted):
        run(RecordingCodec(fail_after=1))
    good = (tmp_path / "m.jsonl").read_text()
    (tmp_path / "m.jsonl").write_text(good + "{}\n")
    with pytest.raises(ManifestError):
        run(RecordingCodec())
    (tmp_path / "m.jsonl").write_text(good)
    assert run(RecordingCodec()).resumed == 1


def test_a_recording_in_several_rows_is_encoded_once(tmp_path: Path, run: Run) -> None:
    write_manifest(tmp_path, [5, 9])
    rows = [
        {"audio": f"{i}.wav", "text": str(i), "ref_audio": f"{1 - i}.wav", "ref_text": str(1 - i)}
        for i in (0, 1)
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    codec = RecordingCodec()
    run(codec)
    assert codec.frames == [9, 5]
    first, second = read_prepared(tmp_path / "out").rows
    assert [codes_FK.tolist() for codes_FK in first["context_codes"]] == [second["codes_FK"].tolist()]


def test_a_second_run_is_refused(tmp_path: Path, run: Run) -> None:
    write_manifest(tmp_path, [5])
    with (
        WorkDirectory(tmp_path / "out").lock(),
        pytest.raises(UserError, match=r"another run is preparing .*out"),
    ):
        run(RecordingCodec())
    run(RecordingCodec())


def test_a_recording_that_changes_while_it_is_prepared(tmp_path: Path, run: Run) -> None:
    write_manifest(tmp_path, [5])

    def change_it(items: Iterable[Any], description: str, total: int | None) -> Iterable[Any]:
        if description == "encoding":
            write_audio(tmp_path / "0.wav", torch.rand(7 * FRAME_SAMPLES) - 0.5)
        return items

    with pytest.raises(AudioError, match=r"0\.wav was changed after it was checked"):
        run(RecordingCodec(), progress=change_it)
    assert not (tmp_path / "out").exists()


def test_rejected_rows_are_left_out_and_listed(tmp_path: Path, run: Run) -> None:
    manifest = write_manifest(tmp_path, [5, 6, 7, 8])
    (tmp_path / "1.wav").write_bytes(b"no sound")
    soundfile.write(tmp_path / "2.wav", np.zeros(1000), SAMPLE_RATE_HZ)
    with manifest.open("a") as file:
        file.write('{"audio": "0.wav"}\n')
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ManifestError, match="4 problems"):
        run(RecordingCodec(), max_rejected=2)
    assert sorted(tmp_path.iterdir()) == before
    assert run(RecordingCodec(), max_rejected=3).card.rejected == 3
    assert [row["text"] for row in read_prepared(tmp_path / "out").rows] == ["number 0", "number 3"]
    rejected = [json.loads(line) for line in (tmp_path / "out" / REJECTED_NAME).read_text().splitlines()]
    assert [(row["file"], row["line"]) for row in rejected] == [(str(manifest), line) for line in (2, 3, 5)]
    assert [len(row["reasons"]) for row in rejected] == [1, 2, 1]
    assert rejected[1]["reasons"][0]["what"] == "2.wav lasts 0.042 s, less than 0.1 s"
    assert rejected[2]["reasons"] == [
        {"what": '"text" is missing', "what_to_do": "Add the words that are spoken."}
    ]
    run(RecordingCodec(), max_rejected=3, overwrite=True)


def test_a_dataset_without_rows_is_not_written(tmp_path: Path, run: Run) -> None:
    write_manifest(tmp_path, [5])
    (tmp_path / "0.wav").write_bytes(b"no sound")
    with pytest.raises(ManifestError):
        run(RecordingCodec(), max_rejected=1000)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        (Limits(min_seconds=0.25), "lasts 0.200 s, less than 0.25 s"),
        (Limits(max_seconds=0.15), "lasts 0.2 s, more than 0.15 s"),
        (Limits(min_sample_rate_hz=44_100), "24000 Hz, less than 44100 Hz"),
        (Limits(min_peak_dbfs=-1.0), "is silent (its peak is -6 dBFS)"),
        (Limits(max_clipped_percent=-1.0), "is clipped (0.0%"),
    ],
    ids=["min_seconds", "max_seconds", "min_sample_rate_hz", "min_peak_dbfs", "max_clipped_percent"],
)
def test_limits_are_held(tmp_path: Path, run: Run, limits: Limits, what: str) -> None:
    write_manifest(tmp_path, [5])
    with pytest.raises(ManifestError) as caught:
        run(RecordingCodec(), limits=limits)
    (problem,) = caught.value.problems
    assert what in problem.what
    run(RecordingCodec())


def test_duplicates_when_allowed(tmp_path: Path, run: Run) -> None:
    manifest = write_manifest(tmp_path, [5])
    manifest.write_text(manifest.read_text() * 2)
    codec = RecordingCodec()
    assert run(codec, limits=Limits(allow_duplicates=True)).card.utterances == 2
    assert codec.frames == [5]


def test_recordings_are_normalized_to_one_loudness(tmp_path: Path, run: Run) -> None:
    write_manifest(tmp_path, [50, 40])
    write_audio(tmp_path / "1.wav", (torch.rand(40 * FRAME_SAMPLES) - 0.5) * 0.01)
    codec = RecordingCodec()
    assert run(codec, loudness_lufs=-23.0).card.loudness_lufs == -23.0
    assert codec.loudness_lufs == pytest.approx([-23.0, -23.0], abs=0.1)


def test_references_are_drawn_from_accepted_rows_only(tmp_path: Path, run: Run) -> None:
    write_manifest(tmp_path, [5, 9, 6], speaker="s")
    (tmp_path / "2.wav").write_bytes(b"no sound")
    codec = RecordingCodec()
    card = run(codec, pair_seed=0, max_rejected=1).card
    assert card.tasks == {"zero_shot_cloning": 2}
    first, second = read_prepared(tmp_path / "out").rows
    assert (list(first["context_texts"]), list(map(len, first["context_codes"]))) == (["number 1"], [9])
    assert [codes_FK.tolist() for codes_FK in first["context_codes"]] == [second["codes_FK"].tolist()]
    assert codec.frames == [9, 5]


def test_notes_report_what_is_not_ideal(tmp_path: Path, run: Run) -> None:
    manifest = write_manifest(tmp_path, [5, 6, 7])
    soundfile.write(tmp_path / "1.wav", np.random.default_rng(0).uniform(-0.5, 0.5, (8000, 2)), 16_000)
    rows = manifest.read_text().splitlines()
    rows[2] = json.dumps({"audio": "2.wav", "text": "[laugh]"})
    manifest.write_text("\n".join(rows))
    notes = run(RecordingCodec()).notes
    assert notes == (
        f"1 texts contain tags or signs but no word (first: {manifest}:3)",
        f"1 recording with two channels, which were averaged (first: {manifest}:2)",
        "1 recording with a sample rate below 24000 Hz: resampling cannot restore high frequencies "
        f"(first: {manifest}:2)",
    )
