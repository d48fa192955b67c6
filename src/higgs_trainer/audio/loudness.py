"""Loudness after ITU-R BS.1770, as an option of `prepare`. Its library is an extra: ``higgs-trainer[loudness]``."""

import math

import numpy as np
import torch
from torch import Tensor

from higgs_trainer.audio.files import SAMPLE_RATE_HZ
from higgs_trainer.errors import UserError

BLOCK_SAMPLES = round(
    0.4 * SAMPLE_RATE_HZ
)  # BS.1770 measures blocks; a shorter clip is repeated until it fills one


def check_loudness_library() -> None:
    """Raise UserError where pyloudnorm is not installed."""
    try:
        import pyloudnorm  # noqa: F401
    except ImportError as error:
        raise UserError("--loudness-lufs needs pyloudnorm; pip install pyloudnorm") from error


def measure_loudness(waveform_S: Tensor) -> float:
    """LUFS; minus infinity for what is silent to the measure."""
    import pyloudnorm

    filling_S = waveform_S.repeat(math.ceil(BLOCK_SAMPLES / len(waveform_S)))
    with np.errstate(divide="ignore"):
        return float(pyloudnorm.Meter(SAMPLE_RATE_HZ).integrated_loudness(filling_S.double().numpy()))


def normalize_loudness(waveform_S: Tensor, loudness_lufs: float) -> Tensor:
    """The waveform at that loudness or, where its peak would then pass full scale, as loud as full scale allows.

    What is silent to the measure stays as it is.
    """
    measured_lufs = measure_loudness(waveform_S)
    if math.isinf(measured_lufs):
        return waveform_S
    gain = 10 ** ((loudness_lufs - measured_lufs) / 20)
    peak = float(waveform_S.abs().max())
    normalized_S: Tensor = waveform_S * min(gain, 1 / peak)
    return normalized_S.to(torch.float32)
