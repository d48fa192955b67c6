"""The measurements of generated recordings equal the values they were generated with."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from higgs_trainer.audio.files import SAMPLE_RATE_HZ
from higgs_trainer.audio.loudness import normalize_loudness
from higgs_trainer.corpus.measurements import Measurement, measure_recording, name_recording


def sine(seconds: float, amplitude: float, rate_hz: int = SAMPLE_RATE_HZ) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * 1000 * np.arange(round(seconds * rate_hz)) / rate_hz)


def measure(path: Path, samples: np.ndarray, rate_hz: int = SAMPLE_RATE_HZ, **options: str) -> Measurement:
    soundfile.write(path, samples, rate_hz, **options)
    return measure_recording(path, max_seconds=10)


def test_measurements_of_a_sine_between_silences(tmp_path: Path) -> None:
    samples = np.concatenate([np.zeros(12_000), sine(0.7, 0.1), np.zeros(7_200)])
    recording = measure(tmp_path / "a.wav", samples, subtype="FLOAT")
    assert recording.seconds == pytest.approx(0.5 + 0.7 + 0.3)
    assert recording.speech_seconds == pytest.approx(0.7, abs=0.03)
    assert recording.peak_dbfs == pytest.approx(-20.0, abs=0.01)
    assert recording.loudness_dbfs == pytest.approx(-20.0 - 3.01, abs=0.05)
    assert (recording.sample_rate_hz, recording.channels) == (SAMPLE_RATE_HZ, 1)
    assert (recording.clipped_percent, recording.cancelled) == (0.0, False)


def test_samples_at_full_scale_are_counted(tmp_path: Path) -> None:
    samples = sine(1.0, 0.5)
    samples[:240] = 1.0
    assert measure(tmp_path / "a.wav", samples).clipped_percent == pytest.approx(1.0)


def test_the_hash_depends_on_the_samples_only(tmp_path: Path) -> None:
    samples = (sine(0.5, 0.3) * 32767).astype(np.int16)
    wav, flac = measure(tmp_path / "a.wav", samples), measure(tmp_path / "a.flac", samples)
    assert wav.content_hash == flac.content_hash
    assert measure(tmp_path / "b.wav", samples, rate_hz=16_000).content_hash != wav.content_hash
    samples[100] += 1
    assert measure(tmp_path / "c.wav", samples).content_hash != wav.content_hash


def test_a_recording_is_named_relative_to_its_manifest() -> None:
    assert name_recording("/data/wav/a.wav", "/data/m.jsonl") == "wav/a.wav"
    assert name_recording("/other/a.wav", "/data/m.jsonl") == "/other/a.wav"


def test_loudness_follows_the_standard() -> None:
    """ITU-R BS.1770: a sine of 997 Hz at full scale in one channel measures -3.01 LUFS."""
    sine_S = torch.sin(2 * torch.pi * 997 * torch.arange(3 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ)
    quiet_S = normalize_loudness(sine_S, -23.0)
    assert float(quiet_S.abs().max()) == pytest.approx(10 ** ((-23 + 3.01) / 20), rel=0.01)
    torch.testing.assert_close(normalize_loudness(sine_S * 0.01, -23.0), quiet_S, rtol=1e-3, atol=1e-4)


def test_loudness_normalization_never_exceeds_full_scale() -> None:
    waveform_S = torch.zeros(SAMPLE_RATE_HZ)
    waveform_S[::2400] = 0.5
    assert float(normalize_loudness(waveform_S, -5.0).abs().max()) == pytest.approx(1.0)


@pytest.mark.parametrize("waveform_S", [torch.zeros(24_000), torch.rand(6720) - 0.5], ids=["silent", "short"])
def test_loudness_of_silent_and_short_recordings(waveform_S: torch.Tensor) -> None:
    assert torch.isfinite(normalize_loudness(waveform_S, -23.0)).all()
