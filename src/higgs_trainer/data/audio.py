"""Audio files to and from waveforms: float32, mono, 24 kHz, in [-1, 1]."""

import os
import re
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from higgs_trainer.errors import AudioError

SAMPLE_RATE_HZ = 24_000
CUT_OFF = re.compile(r"^ *(?:data|SSND) *: *(\d+) \(should be (\d+)\)", re.MULTILINE)
LENGTH_UNKNOWN = 2**31 - 2**16
SHORTEST_SECONDS = 0.1  # below this there is no word, and fewer than three codec frames


def read_audio(path: str | Path) -> Tensor:
    """Read any format that libsndfile knows (WAV, FLAC, OGG/Opus, MP3, ...).

    Returns:
        waveform_S: float32, channels averaged, resampled to `SAMPLE_RATE_HZ`.

    Raises:
        AudioError: the file cannot be decoded, breaks off, is shorter than `SHORTEST_SECONDS`, or not finite.
    """
    try:
        with soundfile.SoundFile(path) as file:
            rate_hz, announced_samples, log = file.samplerate, file.frames, file.extra_info
            channels = file.read(dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{path} cannot be read as audio ({error}); convert it to WAV or FLAC") from error
    samples = channels.mean(axis=1)
    if _is_cut_off(log) or announced_samples - len(samples) > SHORTEST_SECONDS * rate_hz:
        raise AudioError(f"{path} breaks off after {len(samples) / rate_hz:.3f} s; copy or convert it again")
    if len(samples) < SHORTEST_SECONDS * rate_hz:
        seconds = len(samples) / rate_hz
        raise AudioError(f"{path} lasts {seconds:.3f} s; at least {SHORTEST_SECONDS} s of speech are needed")
    if not np.isfinite(samples).all():
        raise AudioError(f"{path} holds samples that are NaN or infinite; export it again")
    if rate_hz != SAMPLE_RATE_HZ:
        samples = soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ, quality="HQ")
    return torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))


def _is_cut_off(log: str) -> bool:
    """Whether a WAV or AIFF file is shorter than its header says. libsndfile reads what is there and only logs it.

    Programs that write into a pipe announce some 2 or 4 GB, since they cannot know: that is no sign of a loss.
    """
    found = CUT_OFF.search(log)
    return found is not None and int(found[2]) < int(found[1]) < LENGTH_UNKNOWN


def write_audio(path: str | Path, waveform_S: Tensor) -> None:
    """Write 16-bit WAV, or what the name's ending says, at 24 kHz: under a temporary name, then renamed.

    Args:
        waveform_S: float samples in [-1, 1]; what is outside is clipped.

    Raises:
        ValueError: the waveform is not one-dimensional, or not finite.
    """
    path = Path(path)
    if waveform_S.ndim != 1:
        raise ValueError(f"a waveform has one axis (samples), got shape {tuple(waveform_S.shape)} for {path}")
    samples = waveform_S.detach().to("cpu", torch.float32).numpy()
    if not np.isfinite(samples).all():
        raise ValueError(f"the waveform for {path} holds NaN or infinity")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    try:
        soundfile.write(unfinished, samples, SAMPLE_RATE_HZ)  # libsndfile clips
        os.chmod(unfinished, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(unfinished, path)
    finally:
        Path(unfinished).unlink(missing_ok=True)
