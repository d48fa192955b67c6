"""The embedded codec: shapes, the round trip, and equal codes after saving and loading."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from higgs_trainer.audio import mel_codec
from higgs_trainer.audio.mel_codec import FRAME_SAMPLES, NUM_MELS, MelCodec, compute_log_mel, search_codes

CODES = 13


def sound(pitch_hz: float, num_samples: int = 24_000) -> Tensor:
    """Generate five harmonics whose amplitude varies twice per second."""
    seconds = torch.arange(num_samples) / mel_codec.SAMPLE_RATE_HZ
    tones = sum(torch.sin(2 * math.pi * pitch_hz * n * seconds) / n for n in range(1, 6))
    return 0.2 * tones * torch.sin(2 * math.pi * seconds) ** 2


@pytest.fixture(scope="module")
def sounds() -> list[Tensor]:
    return [sound(pitch_hz) for pitch_hz in (110.0, 150.0, 220.0, 310.0)]


@pytest.fixture(scope="module")
def codec(sounds: list[Tensor]) -> MelCodec:
    return MelCodec.fit(sounds, codebook_size=CODES, seed=0, name="tones")


@pytest.mark.parametrize(("num_samples", "num_frames"), [(1, 1), (959, 1), (960, 1), (961, 2), (4801, 6)])
def test_a_started_frame_counts_as_a_frame(codec: MelCodec, num_samples: int, num_frames: int) -> None:
    codes_FK = codec.encode(sound(150.0, num_samples))
    assert codes_FK.shape == (num_frames, 8)
    assert codes_FK.dtype == torch.int64
    assert 0 <= int(codes_FK.min()) <= int(codes_FK.max()) < CODES
    waveform_S = codec.decode(codes_FK)
    assert waveform_S.shape == (num_frames * FRAME_SAMPLES,)
    assert waveform_S.dtype == torch.float32
    assert float(waveform_S.abs().max()) <= 1


def test_the_shape_equals_that_of_the_real_codec(codec: MelCodec) -> None:
    shape = (codec.sample_rate_hz, codec.frames_per_second, codec.num_codebooks, codec.codebook_size)
    assert shape == (24_000, 25, 8, CODES)
    assert codec.sample_rate_hz == codec.frames_per_second * FRAME_SAMPLES


def test_a_tone_is_loudest_in_its_band() -> None:
    """Compare with the centres of the filters, from the formula of the mel scale."""
    bands = torch.arange(1, NUM_MELS + 1)
    top = 2595 * math.log10(1 + 12_000 / 700)
    centres_hz = 700 * (10 ** (bands * top / (NUM_MELS + 1) / 2595) - 1)
    for pitch_hz in (997.0, 3001.0, 8009.0):
        tone_S = 0.3 * torch.sin(2 * math.pi * pitch_hz * torch.arange(9600) / 24_000)
        loudest = compute_log_mel(tone_S)[5, :NUM_MELS].argmax()
        assert loudest == (centres_hz - pitch_hz).abs().argmin()


def test_the_round_trip_keeps_the_spectrum(codec: MelCodec, sounds: list[Tensor]) -> None:
    before_FM, other_FM = compute_log_mel(sounds[0]), compute_log_mel(sounds[3])
    after_FM = compute_log_mel(codec.decode(codec.encode(sounds[0])))
    loud_FM = before_FM > -2
    error = (after_FM - before_FM)[loud_FM].abs().mean()
    assert error < 0.5
    assert error < 0.25 * (other_FM - before_FM)[loud_FM].abs().mean()


def test_the_same_input_gives_the_same_output(codec: MelCodec, sounds: list[Tensor]) -> None:
    again = MelCodec.fit(sounds, codebook_size=CODES, seed=0, name="tones")
    assert again.fingerprint == codec.fingerprint
    codes_FK = codec.encode(sounds[1])
    assert torch.equal(again.encode(sounds[1]), codes_FK)
    torch.manual_seed(1)
    first_S = codec.decode(codes_FK)
    torch.manual_seed(2)
    assert torch.equal(codec.decode(codes_FK), first_S)


def test_another_seed_is_another_codec(codec: MelCodec, sounds: list[Tensor]) -> None:
    assert MelCodec.fit(sounds, codebook_size=CODES, seed=1).fingerprint != codec.fingerprint


def test_a_saved_codec_loads_unchanged(codec: MelCodec, sounds: list[Tensor], tmp_path: Path) -> None:
    codec.save_pretrained(tmp_path)
    loaded = MelCodec.from_pretrained(tmp_path)
    assert (loaded.name, loaded.fingerprint) == ("tones", codec.fingerprint)
    assert torch.equal(loaded.codebooks_KCD, codec.codebooks_KCD)
    codes_FK = codec.encode(sounds[2])
    assert torch.equal(loaded.encode(sounds[2]), codes_FK)
    assert torch.equal(loaded.decode(codes_FK), codec.decode(codes_FK))


def test_more_beams_find_closer_codes(codec: MelCodec) -> None:
    points_FD = torch.randn(57, codec.codebooks_KCD.shape[2], generator=torch.Generator().manual_seed(0))

    def error(num_beams: int) -> float:
        codes_FK = search_codes(points_FD, codec.codebooks_KCD, num_beams)
        return float((points_FD - mel_codec.sum_codewords(codes_FK, codec.codebooks_KCD)).square().sum())

    assert error(16) < error(4) < error(1)


def test_one_beam_is_greedy(codec: MelCodec) -> None:
    points_FD = torch.randn(11, codec.codebooks_KCD.shape[2], generator=torch.Generator().manual_seed(1))
    residual_FD = points_FD.clone()
    for codebook_CD, codes_F in zip(
        codec.codebooks_KCD, search_codes(points_FD, codec.codebooks_KCD, 1).T, strict=True
    ):
        assert torch.equal(codes_F, torch.cdist(residual_FD, codebook_CD).argmin(dim=1))
        residual_FD -= codebook_CD[codes_F]


def test_a_long_recording_is_searched_in_chunks(codec: MelCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    waveform_S = sound(180.0, 17 * FRAME_SAMPLES)
    whole_FK = codec.encode(waveform_S)
    monkeypatch.setattr(mel_codec, "FRAMES_PER_CHUNK", 5)
    assert torch.equal(codec.encode(waveform_S), whole_FK)


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (torch.zeros(2, 960), r"shape \(2, 960\)"),
        (torch.zeros(0), r"shape \(0,\)"),
        (torch.tensor([0.1, math.nan]), "NaN"),
        (torch.tensor([0.1, math.inf]), "infinite"),
    ],
)
def test_an_invalid_waveform_is_an_error(codec: MelCodec, waveform: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codec.encode(waveform)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(5, 7, dtype=torch.int64), r"shape \(5, 7\), expected \(frames, 8\)"),
        (torch.zeros(0, 8, dtype=torch.int64), r"shape \(0, 8\)"),
        (torch.full((3, 8), CODES), "Remove begin-of-stream and end-of-stream first"),
        (torch.full((3, 8), -100), r"\[-100, -100\]"),
    ],
)
def test_invalid_codes_are_an_error(codec: MelCodec, codes: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codec.decode(codes)


def test_too_few_recordings_to_fit_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"25 frames \(1\.0 s\) are too few for codebooks of 26"):
        MelCodec.fit([sound(120.0)], codebook_size=26, seed=0)
