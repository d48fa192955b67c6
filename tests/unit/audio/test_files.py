"""Audio files of any rate and channels become mono 24 kHz; an unusable file is named."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from higgs_trainer.audio import files
from higgs_trainer.audio.files import SAMPLE_RATE_HZ, decode_file, read_audio, write_audio
from higgs_trainer.errors import AudioError, SaveError


def make_tone(hz: float, rate_hz: int, seconds: float) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(rate_hz * seconds)) / rate_hz)


def find_loudest_hz(waveform_S: torch.Tensor) -> float:
    spectrum = torch.fft.rfft(waveform_S).abs()
    return float(spectrum.argmax()) * SAMPLE_RATE_HZ / len(waveform_S)


def test_too_many_open_files_are_not_called_a_damaged_recording(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    soundfile.write(tmp_path / "a.wav", make_tone(440, 24_000, 0.5), 24_000)
    probe = os.open(os.devnull, os.O_RDONLY)
    os.close(probe)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            read_audio(tmp_path / "a.wav")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 24_000, 44_100, 48_000])
def test_any_rate_becomes_24_khz(tmp_path: Path, rate_hz: int) -> None:
    soundfile.write(tmp_path / "a.wav", make_tone(440, rate_hz, 0.5), rate_hz)
    waveform_S = read_audio(tmp_path / "a.wav")
    assert waveform_S.dtype == torch.float32
    assert abs(len(waveform_S) - 12_000) <= 1
    assert find_loudest_hz(waveform_S) == pytest.approx(440, abs=2)
    assert float(waveform_S[3000:9000].abs().max()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
def test_channels_are_averaged(tmp_path: Path, ending: str) -> None:
    left = make_tone(440, 24_000, 0.5)
    soundfile.write(tmp_path / f"a.{ending}", np.stack([left, np.zeros_like(left)], axis=1), 24_000)
    waveform_S = read_audio(tmp_path / f"a.{ending}")
    assert waveform_S.shape == (12_000,)
    assert float(waveform_S[3000:9000].abs().max()) == pytest.approx(0.25, abs=0.02)


def test_a_written_file_is_read_back(tmp_path: Path) -> None:
    waveform_S = torch.rand(4801) * 2 - 1
    write_audio(tmp_path / "new" / "a.wav", waveform_S)
    torch.testing.assert_close(read_audio(tmp_path / "new" / "a.wav"), waveform_S, atol=2**-15, rtol=0)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.wav"]


def test_samples_beyond_full_scale_are_clipped(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", torch.full((4800,), 1.5))
    assert float(read_audio(tmp_path / "a.wav").min()) > 0.99


@pytest.mark.parametrize("waveform_S", [torch.zeros(2, 4800), torch.full((4800,), torch.nan)])
def test_an_invalid_waveform_is_not_written(tmp_path: Path, waveform_S: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"a\.wav"):
        write_audio(tmp_path / "a.wav", waveform_S)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_audio(tmp_path / "a.wav", torch.full((4800,), 0.5))

    def write_part(path: Path, content: bytes) -> None:
        path.write_text(content[:4].decode("ascii"))
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", write_part)
    with pytest.raises(SaveError, match=r"a\.wav could not be written .*no space"):
        write_audio(tmp_path / "a.wav", torch.zeros(4800))
    assert float(read_audio(tmp_path / "a.wav").mean()) == pytest.approx(0.5, abs=0.01)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_reading_a_pipe_does_not_block(tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        pytest.fail("the pipe was opened")

    os.mkfifo(tmp_path / "a.wav")
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(5)
    try:
        with pytest.raises(AudioError, match=r"a\.wav cannot be read as audio \(a pipe\)"):
            read_audio(tmp_path / "a.wav")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_file_written_through_a_pipe_is_complete(tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav")
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(content)
    assert len(read_audio(tmp_path / "a.wav")) == 12_000


def write_tone(path: Path, *, seconds: float = 0.5, **options: str) -> None:
    soundfile.write(path, make_tone(440, 24_000, seconds), 24_000, **options)


def write_not_finite(path: Path) -> None:
    tone = make_tone(440, 24_000, 0.5)
    tone[100] = np.nan
    soundfile.write(path, tone, 24_000, subtype="FLOAT")


def write_half(path: Path, **options: str) -> None:
    write_tone(path, seconds=2, **options)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


BROKEN = {
    "no sound": (lambda path: path.write_bytes(b"not a sound"), "cannot be read as audio"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read as audio"),
    "no samples": (lambda path: write_tone(path, seconds=0), r"lasts 0\.000 s"),
    "too short": (lambda path: write_tone(path, seconds=0.05), r"lasts 0\.050 s"),
    "not finite": (write_not_finite, "NaN or infinite"),
    "half a WAV": (write_half, "ends early, after"),
    "half an AIFF": (lambda path: write_half(path, format="AIFF"), "ends early, after"),
    "half an MP3": (lambda path: write_half(path, format="MP3"), "ends early, after 0"),
    "half a FLAC": (lambda path: write_half(path, format="FLAC"), "cannot be read as audio"),
    "missing": (lambda path: None, "cannot be read as audio"),
}


@pytest.mark.parametrize(("write", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_named(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    write(tmp_path / "a.wav")
    with pytest.raises(AudioError, match=message) as caught:
        read_audio(tmp_path / "a.wav")
    assert str(tmp_path / "a.wav") in str(caught.value)


def test_no_more_is_decoded_than_the_longest_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header may announce no length, and a megabyte of FLAC can contain ten hours."""
    soundfile.write(tmp_path / "a.flac", np.zeros(60 * 8_000, np.int16), 8_000)
    read, decoded = soundfile.SoundFile.read, 0

    def count(self: soundfile.SoundFile, *arguments: object, **options: object) -> np.ndarray:
        nonlocal decoded
        samples_SC: np.ndarray = read(self, *arguments, **options)
        decoded += len(samples_SC)
        return samples_SC

    monkeypatch.setattr(soundfile.SoundFile, "read", count)
    with pytest.raises(AudioError, match=r"lasts 60\.0 s, more than 7 s. Cut it"):
        decode_file(tmp_path / "a.flac", max_seconds=7)
    assert decoded == 0, "the header announces the length"
    monkeypatch.setattr(soundfile.SoundFile, "frames", 2**62)
    with pytest.raises(AudioError, match=r"lasts more than 7 s. Cut it"):
        decode_file(tmp_path / "a.flac", max_seconds=7)
    assert decoded == 7 * 8_000 + 1


def test_blocks_give_the_samples_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, (4_801, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 24_000, subtype="FLOAT")
    for block in (2, 999, 2**20):
        monkeypatch.setattr(files, "BLOCK_SAMPLES", block)
        np.testing.assert_array_equal(decode_file(tmp_path / "a.wav").samples_SC, samples)


def test_a_recording_of_many_samples_a_second_is_limited_by_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "a.wav", np.full((384_000, 2), 0.1), 384_000)
    assert decode_file(tmp_path / "a.wav", max_seconds=2).seconds == 1
    monkeypatch.setattr(files, "MOST_SAMPLES", 1_000)
    with pytest.raises(AudioError, match=r"lasts 1\.0 s, more than 0\.25 s"):
        decode_file(tmp_path / "a.wav", max_seconds=2)


def test_a_reference_has_at_most_ten_minutes(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", np.zeros(601 * 1_000, np.int16), 1_000)
    with pytest.raises(AudioError, match=r"lasts 601\.0 s, more than 600 s. Cut it"):
        read_audio(tmp_path / "a.flac")
    assert len(read_audio(tmp_path / "a.flac", max_seconds=700)) == 601 * 24_000
