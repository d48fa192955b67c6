"""transformers' class for the released audio tokenizer, without torchaudio.

The module of the class imports torchaudio and calls one function of it, `torchaudio.functional.resample`, from 24 to
16 kHz. torchaudio has no release for every torch, and its compiled libraries fail to load next to another one. So the
module is imported with a stand-in that has only this function, computed in plain torch.
"""

import importlib
import importlib.machinery
import math
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

MODULE = "transformers.models.higgs_audio_v2_tokenizer.modeling_higgs_audio_v2_tokenizer"
ZERO_CROSSINGS = 6
"""Zero crossings of the sinc on each side, as torchaudio's default."""
ROLLOFF = 0.99
"""Cut-off frequency as a share of the lower Nyquist frequency, as torchaudio's default."""


def load_tokenizer_class() -> Any:
    """Import `HiggsAudioV2TokenizerModel`. A module that was imported before, with the real torchaudio, is reused."""
    if MODULE not in sys.modules:
        _import_with_stand_in()
    return sys.modules[MODULE].HiggsAudioV2TokenizerModel


def _import_with_stand_in() -> None:
    stand_in: Any = ModuleType("torchaudio")
    # Libraries look for a package by its spec.
    stand_in.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    stand_in.functional = SimpleNamespace(resample=resample)
    replaced = sys.modules.get("torchaudio")
    sys.modules["torchaudio"] = stand_in
    try:
        importlib.import_module(MODULE)
    finally:
        if replaced is None:
            del sys.modules["torchaudio"]
        else:
            sys.modules["torchaudio"] = replaced


def resample(waveform: Tensor, orig_freq: int, new_freq: int) -> Tensor:
    """Resample by a windowed sinc, with the defaults of `torchaudio.functional.resample`.

    Args:
        waveform: (..., S) at `orig_freq`.
        orig_freq: the rate in Hz of the input.
        new_freq: the rate in Hz of the output.

    Returns:
        (..., ceil(S * new_freq / orig_freq)).
    """
    divisor = math.gcd(orig_freq, new_freq)
    step, num_phases = orig_freq // divisor, new_freq // divisor
    if step == num_phases:
        return waveform
    num_samples = waveform.shape[-1]
    kernel, reach = _build_kernel(step, num_phases, waveform)
    rows_BS = torch.nn.functional.pad(waveform.reshape(-1, num_samples), (reach, reach + step))
    # One column for each phase: the output samples between two steps of the input.
    phases = torch.nn.functional.conv1d(rows_BS[:, None], kernel[:, None], stride=step)
    resampled_BS = phases.transpose(1, 2).flatten(1)[:, : math.ceil(num_samples * num_phases / step)]
    return resampled_BS.reshape(*waveform.shape[:-1], -1)


def _build_kernel(step: int, num_phases: int, like: Tensor) -> tuple[Tensor, int]:
    """Return a filter for each phase (num_phases, taps), and the number of samples that it reaches back."""
    cutoff = min(step, num_phases) * ROLLOFF
    reach = math.ceil(ZERO_CROSSINGS * step / cutoff)
    # Times are in periods of the common frequency. Double precision, because the phases are differences.
    taps = torch.arange(-reach, reach + step, dtype=torch.float64) / step
    phases = torch.arange(num_phases, dtype=torch.float64)[:, None] / num_phases
    times = ((taps - phases) * cutoff).clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = torch.cos(times * math.pi / ZERO_CROSSINGS / 2) ** 2
    kernel = torch.sinc(times) * window * (cutoff / step)
    return kernel.to(like), reach
