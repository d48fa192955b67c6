"""Read and write audio files. A waveform is float32, mono, 24 kHz, in [-1, 1]."""

import io
import math
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from higgs_trainer.errors import AudioError
from higgs_trainer.files import write_bytes

SAMPLE_RATE_HZ = 24_000
CUT_OFF = re.compile(r"^ *(?:data|SSND) *: *(\d+) \(should be (\d+)\)", re.MULTILINE)
LENGTH_UNKNOWN = 2**31 - 2**16
# 0.1 s is less than three codec frames, too short for a word.
SHORTEST_SECONDS = 0.1
# Averaging the channels is right for stereo, but not for 5.1.
MOST_CHANNELS = 2
# Any other sample rate means a damaged header.
RATES_HZ = range(1_000, 768_001)

KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


@dataclass(frozen=True)
class Decoded:
    """The content of an audio file: `samples_SC`, float32, C channels, at its own sample rate."""

    samples_SC: np.ndarray
    rate_hz: int

    @property
    def seconds(self) -> float:
        return len(self.samples_SC) / self.rate_hz


def read_audio(path: str | Path) -> Tensor:
    """Read any format that libsndfile supports (WAV, FLAC, OGG/Opus, MP3, ...), whatever the suffix.

    Returns:
        waveform_S: float32, channels averaged, resampled to `SAMPLE_RATE_HZ`.

    Raises:
        AudioError: as `decode_file`, or the recording is shorter than `SHORTEST_SECONDS`.
    """
    decoded = decode_file(path)
    if decoded.seconds < SHORTEST_SECONDS:
        raise AudioError(
            path,
            f"lasts {decoded.seconds:.3f} s, less than {SHORTEST_SECONDS} s",
            "Give a longer recording.",
        )
    return to_waveform(decoded)


def decode_file(path: str | Path, *, max_seconds: float = math.inf) -> Decoded:
    """Read the samples of a file. No more than `max_seconds` of it are held in memory.

    Raises:
        AudioError: it is not a regular file, cannot be decoded, ends early, is not finite, is longer than
            `max_seconds`, or has more than `MOST_CHANNELS` channels or a sample rate outside `RATES_HZ`.
    """
    try:
        # Opening a pipe or a device could block forever.
        if (kind := name_kind(path)) != "a file":
            raise AudioError(path, f"cannot be read as audio ({kind})", "Give a recording.")
        with soundfile.SoundFile(path) as file:
            rate_hz, announced_samples, log = file.samplerate, file.frames, file.extra_info
            _check_header(path, file, max_seconds)
            most = -1 if math.isinf(max_seconds) else int(max_seconds * rate_hz) + 1
            samples_SC = file.read(most, dtype="float32", always_2d=True)
    # soundfile raises TypeError for *.raw.
    except (soundfile.LibsndfileError, OSError, ValueError, TypeError) as error:
        raise AudioError(path, f"cannot be read as audio ({error})", "Convert it to WAV or FLAC.") from error
    decoded = Decoded(samples_SC, rate_hz)
    # The header may have announced less, or nothing.
    if decoded.seconds > max_seconds:
        raise AudioError(path, f"lasts more than {max_seconds:g} s", "Cut it, or raise --max-seconds.")
    if _is_cut_off(log) or announced_samples / rate_hz - decoded.seconds > SHORTEST_SECONDS:
        raise AudioError(path, f"ends early, after {decoded.seconds:.3f} s", "Copy or convert it again.")
    if not np.isfinite(samples_SC).all():
        raise AudioError(path, "contains NaN or infinite samples", "Export it again.")
    return decoded


def to_waveform(decoded: Decoded) -> Tensor:
    """Average the channels and resample to `SAMPLE_RATE_HZ`: waveform_S, float32."""
    samples_S = decoded.samples_SC.mean(axis=1)
    if decoded.rate_hz != SAMPLE_RATE_HZ:
        samples_S = soxr.resample(samples_S, decoded.rate_hz, SAMPLE_RATE_HZ, quality="HQ")
    return torch.from_numpy(np.ascontiguousarray(samples_S, dtype=np.float32))


def name_kind(path: str | Path) -> str:
    """Return what a path leads to: "a file", "a folder", "a pipe", ... or "no such file".

    Raises:
        OSError: the path cannot be resolved: a loop of links, a name that is too long, no permission.
        ValueError: the path contains a NUL.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "no such file"
    return KINDS.get(stat.S_IFMT(mode), "a special file")


def _check_header(path: str | Path, file: soundfile.SoundFile, max_seconds: float) -> None:
    if file.samplerate not in RATES_HZ:
        raise AudioError(
            path,
            f"has a sample rate of {file.samplerate} Hz",
            "Its header is damaged: copy or convert it again.",
        )
    if file.channels > MOST_CHANNELS:
        raise AudioError(path, f"has {file.channels} channels", "Keep the channel of the speaker.")
    announced_seconds = file.frames / file.samplerate
    if announced_seconds > max_seconds and file.frames < LENGTH_UNKNOWN:
        raise AudioError(
            path,
            f"lasts {announced_seconds:.1f} s, more than {max_seconds:g} s",
            "Cut it, or raise --max-seconds.",
        )


def _is_cut_off(log: str) -> bool:
    """Return whether a WAV or AIFF file is shorter than its header announces, which libsndfile only logs.

    A program that writes into a pipe does not know the length and announces about 2 or 4 GB. Such a file is complete.
    """
    found = CUT_OFF.search(log)
    return found is not None and int(found[2]) < int(found[1]) < LENGTH_UNKNOWN


def write_audio(path: str | Path, waveform_S: Tensor) -> None:
    """Write a 16-bit file at 24 kHz atomically, in the format of the suffix, such as WAV.

    Args:
        waveform_S: float samples in [-1, 1]. Samples outside this range are clipped.

    Raises:
        ValueError: the waveform is not one-dimensional, or not finite.
    """
    path = Path(path)
    if waveform_S.ndim != 1:
        raise ValueError(f"a waveform has one axis (samples), got shape {tuple(waveform_S.shape)} for {path}")
    samples = waveform_S.detach().to("cpu", torch.float32).numpy()
    if not np.isfinite(samples).all():
        raise ValueError(f"the waveform for {path} contains NaN or infinity")
    encoded = io.BytesIO()
    # libsndfile clips. Where it writes to the disk itself, it does not say why that fails.
    soundfile.write(encoded, samples, SAMPLE_RATE_HZ, format=path.suffix[1:].upper())
    write_bytes(path, encoded.getvalue())
