"""The speaker encoder, against its original and on voices that are known."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from higgs_trainer.audio.files import SAMPLE_RATE_HZ, read_audio
from higgs_trainer.evaluation.speaker_encoder import load_speaker_encoder

RECORDINGS = Path(__file__).parents[2] / "recordings"


def read_voice(name: str) -> list[Tensor]:
    return [read_audio(file) for file in sorted(RECORDINGS.glob(f"{name}-*.ogg"))]


def measure_similarity(waveforms: list[Tensor], others: list[Tensor]) -> float:
    """The mean cosine with the mean embedding of the others."""
    encoder = load_speaker_encoder()
    one_ND, other_ND = (
        torch.stack([encoder.embed(wave_S, SAMPLE_RATE_HZ) for wave_S in waves])
        for waves in (waveforms, others)
    )
    return float(torch.nn.functional.cosine_similarity(one_ND, other_ND.mean(dim=0, keepdim=True)).mean())


def test_the_encoder_is_resemblyzers() -> None:
    seconds = torch.arange(int(2.5 * 16_000), dtype=torch.float64) / 16_000
    buzz = sum(torch.sin(2 * torch.pi * 140 * k * seconds) / k for k in range(1, 20))
    wave = (buzz * (0.6 + 0.4 * torch.sin(2 * torch.pi * 3 * seconds)) * 0.1).float()
    embedding = load_speaker_encoder().embed(wave, 16_000)
    # Made by Resemblyzer 0.1.4: VoiceEncoder().embed_utterance(wave), the eight largest components.
    largest = [146, 189, 122, 246, 82, 48, 36, 28]
    expected = [0.2695, 0.2542, 0.2515, 0.2264, 0.1955, 0.1677, 0.1674, 0.1657]
    assert embedding[largest].tolist() == pytest.approx(expected, abs=1e-3)
    assert embedding.norm().item() == pytest.approx(1.0, abs=1e-6)


def test_a_voice_resembles_itself_more_than_another() -> None:
    rms, slt = read_voice("rms"), read_voice("slt")
    same = measure_similarity(rms[:1], rms[1:]), measure_similarity(slt[:1], slt[1:])
    swapped = measure_similarity(rms[:1], slt[1:]), measure_similarity(slt[:1], rms[1:])
    assert min(same) > 0.8
    assert max(swapped) < 0.7


def test_loudness_does_not_change_the_voice() -> None:
    wave_S = read_voice("slt")[0]
    encoder = load_speaker_encoder()
    assert encoder.embed(wave_S * 0.05, SAMPLE_RATE_HZ) @ encoder.embed(wave_S * 0.01, SAMPLE_RATE_HZ) > 0.999


def test_noise_and_silence_resemble_no_voice() -> None:
    encoder, rms = load_speaker_encoder(), read_voice("rms")
    for silence in (torch.zeros(24_000), torch.zeros(0)):
        assert not encoder.embed(silence, SAMPLE_RATE_HZ).any()
    assert measure_similarity([0.1 * torch.randn(48_000)], rms) < 0.6
