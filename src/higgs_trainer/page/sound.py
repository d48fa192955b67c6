"""Encode a clip for a page: its audio and its spectrogram, as data URIs."""

import base64
import functools
import io
import math

import numpy as np
import soundfile
import torch
from PIL import Image
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

FFT_SAMPLES = 1024
NUM_MELS = 64
LOWEST_HZ = 50.0
# 10 ms at 24 kHz. Longer clips have a longer hop, so that none is wider than `WIDEST_COLUMNS`.
HOP_SAMPLES = 240
WIDEST_COLUMNS = 480
# Levels this far below the loudest point are black.
RANGE_DB = 65.0
COLOURS = ((13, 17, 28), (43, 44, 92), (120, 62, 122), (214, 97, 100), (250, 172, 104), (255, 244, 214))


def encode_audio(waveform_S: Tensor, sample_rate_hz: int) -> str:
    """Encode a waveform as MP3, which every browser plays and which is a tenth of the size of a WAV file.

    Args:
        waveform_S: (S,) in [-1, 1]; values outside are clipped.
    """
    samples = waveform_S.detach().float().cpu().clamp(-1.0, 1.0).numpy()
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, sample_rate_hz, format="MP3", subtype="MPEG_LAYER_III")
    return to_data_uri(encoded.getvalue(), "audio/mpeg")


def draw_spectrogram(waveform_S: Tensor, sample_rate_hz: int) -> str:
    """Draw a mel spectrogram as WebP, about 1 to 3 KB. Frequencies rise from `LOWEST_HZ` to half the sample rate.

    Levels are relative to the clip's loudest point, so that a quiet clip is as visible as a loud one.
    """
    levels_FT = _measure_levels(waveform_S.detach().float().cpu(), sample_rate_hz)
    positions = np.linspace(0.0, 1.0, len(COLOURS))
    pixels = np.stack(
        [np.interp(levels_FT, positions, channel) for channel in np.array(COLOURS, dtype=float).T], axis=-1
    )
    encoded = io.BytesIO()
    Image.fromarray(pixels[::-1].round().astype(np.uint8)).save(encoded, "WEBP", quality=60, method=6)
    return to_data_uri(encoded.getvalue(), "image/webp")


def to_data_uri(content: bytes, media_type: str) -> str:
    """Return a file as a data URI for an HTML attribute."""
    return f"data:{media_type};base64," + base64.b64encode(content).decode("ascii")


def _measure_levels(waveform_S: Tensor, sample_rate_hz: int) -> np.ndarray:
    """Return the levels (mel bands, columns) from 0 to 1; all 0 for silence."""
    hop = max(HOP_SAMPLES, math.ceil(len(waveform_S) / WIDEST_COLUMNS))
    padded_S = torch.nn.functional.pad(waveform_S, (FFT_SAMPLES // 2, FFT_SAMPLES // 2))
    window_S = torch.hann_window(FFT_SAMPLES)
    spectrum = torch.stft(padded_S, FFT_SAMPLES, hop, window=window_S, center=False, return_complex=True)
    power = _mel_filters(sample_rate_hz).T @ spectrum.abs().square()
    decibels = 10 * torch.log10(power.clamp(min=1e-7))
    levels: np.ndarray = (1 + (decibels - decibels.max()) / RANGE_DB).clamp(0, 1).numpy()
    return levels if float(power.max()) > 1e-7 else np.zeros_like(levels)


@functools.cache
def _mel_filters(sample_rate_hz: int) -> Tensor:
    """Return the filter bank (frequencies, mel bands)."""
    filters = mel_filter_bank(
        FFT_SAMPLES // 2 + 1,
        NUM_MELS,
        LOWEST_HZ,
        sample_rate_hz / 2,
        sample_rate_hz,
        norm=None,
        mel_scale="htk",
    )
    return torch.from_numpy(filters).float()
