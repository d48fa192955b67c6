"""Loudness by ITU-R BS.1770, an option of `prepare`. Needs pyloudnorm, the extra ``higgs-trainer[loudness]``."""

import math

import numpy as np
import torch
from torch import Tensor

from higgs_trainer.audio.files import SAMPLE_RATE_HZ
from higgs_trainer.errors import UserError

# BS.1770 measures blocks of 0.4 s. A shorter clip is repeated until it fills one.
BLOCK_SAMPLES = round(0.4 * SAMPLE_RATE_HZ)


def check_loudness_library() -> None:
    """Raise UserError if pyloudnorm is not installed."""
    try:
        import pyloudnorm  # noqa: F401
    except ImportError as error:
        raise UserError(
            "--loudness-lufs needs pyloudnorm. Run: pip install 'higgs-trainer[loudness]'"
        ) from error


def measure_loudness(waveform_S: Tensor) -> float:
    """Measure the loudness in LUFS. It is minus infinity for silence."""
    import pyloudnorm

    filling_S = waveform_S.repeat(math.ceil(BLOCK_SAMPLES / len(waveform_S)))
    with np.errstate(divide="ignore"):
        return float(pyloudnorm.Meter(SAMPLE_RATE_HZ).integrated_loudness(filling_S.double().numpy()))


def normalize_loudness(waveform_S: Tensor, loudness_lufs: float) -> Tensor:
    """Scale a waveform to a loudness, or less if its peak would exceed full scale. Silence stays unchanged."""
    measured_lufs = measure_loudness(waveform_S)
    if math.isinf(measured_lufs):
        return waveform_S
    gain = 10 ** ((loudness_lufs - measured_lufs) / 20)
    peak = float(waveform_S.abs().max())
    normalized_S: Tensor = waveform_S * min(gain, 1 / peak)
    return normalized_S.to(torch.float32)
