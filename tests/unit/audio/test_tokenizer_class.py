"""The resampler that transformers' tokenizer class gets in place of torchaudio's."""

import math

import pytest
import torch

from higgs_trainer.audio.tokenizer_class import resample


def resample_by_definition(samples: list[float], rate_hz: int, new_rate_hz: int) -> list[float]:
    """Sum windowed sincs, one output sample at a time: the definition of band-limited interpolation."""
    cutoff_hz = min(rate_hz, new_rate_hz) * 0.99
    reach_seconds = 6 / cutoff_hz
    resampled = []
    for index in range(math.ceil(len(samples) * new_rate_hz / rate_hz)):
        total = 0.0
        for position, sample in enumerate(samples):
            seconds = position / rate_hz - index / new_rate_hz
            if abs(seconds) < reach_seconds:
                phase = math.pi * seconds * cutoff_hz
                sinc = math.sin(phase) / phase if phase else 1.0
                total += sample * sinc * math.cos(phase / 12) ** 2 * cutoff_hz / rate_hz
        resampled.append(total)
    return resampled


@pytest.mark.parametrize(
    ("rate_hz", "new_rate_hz"), [(24_000, 16_000), (16_000, 24_000), (44_100, 16_000), (8_000, 8_000)]
)
def test_it_follows_the_definition(rate_hz: int, new_rate_hz: int) -> None:
    generator = torch.Generator().manual_seed(0)
    waveforms = torch.randn(2, 1, 331, generator=generator)
    resampled = resample(waveforms, rate_hz, new_rate_hz)
    if rate_hz == new_rate_hz:
        assert torch.equal(resampled, waveforms)
        return
    expected = torch.tensor(
        [[resample_by_definition(row.tolist(), rate_hz, new_rate_hz)] for row in waveforms[:, 0]]
    )
    torch.testing.assert_close(resampled, expected, atol=2e-5, rtol=0)


def test_a_tone_keeps_its_height_and_one_above_the_new_limit_is_removed() -> None:
    times_S = torch.arange(24_000) / 24_000
    for frequency_hz, expected in ((1_000, 0.5**0.5), (11_000, 0.0)):
        resampled = resample(torch.sin(2 * math.pi * frequency_hz * times_S), 24_000, 16_000)
        assert resampled.shape == (16_000,)
        assert resampled[100:-100].square().mean().sqrt().item() == pytest.approx(expected, abs=0.01)
