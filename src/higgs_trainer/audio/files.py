"""Audio files to and from waveforms: float32, mono, 24 kHz, in [-1, 1]."""

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
from higgs_trainer.files import whole_file

SAMPLE_RATE_HZ = 24_000
CUT_OFF = re.compile(r"^ *(?:data|SSND) *: *(\d+) \(should be (\d+)\)", re.MULTILINE)
LENGTH_UNKNOWN = 2**31 - 2**16
SHORTEST_SECONDS = 0.1  # below this there is no word, and fewer than three codec frames
MOST_CHANNELS = 2  # the mean of two is what a listener hears; of 5.1 it is not
RATES_HZ = range(1_000, 768_001)  # what is outside is a damaged header

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
    """A file as it is: `samples_SC` float32, C channels, at its own rate."""

    samples_SC: np.ndarray
    rate_hz: int

    @property
    def seconds(self) -> float:
        return len(self.samples_SC) / self.rate_hz


def read_audio(path: str | Path) -> Tensor:
    """Read any format that libsndfile knows (WAV, FLAC, OGG/Opus, MP3, ...), whatever the name's ending.

    Returns:
        waveform_S: float32, channels averaged, resampled to `SAMPLE_RATE_HZ`.

    Raises:
        AudioError: as `decode_file`, or the sound is shorter than `SHORTEST_SECONDS`.
    """
    decoded = decode_file(path)
    if decoded.seconds < SHORTEST_SECONDS:
        raise AudioError(
            path, f"lasts {decoded.seconds:.3f} s", f"at least {SHORTEST_SECONDS} s of speech are needed"
        )
    return to_waveform(decoded)


def decode_file(path: str | Path, *, max_seconds: float = math.inf) -> Decoded:
    """Read a file's samples. What is longer than `max_seconds` is refused before more than that is in memory.

    Raises:
        AudioError: it is no regular file, cannot be decoded, breaks off, is not finite, is longer than
            `max_seconds`, or has more than `MOST_CHANNELS` channels or a rate outside `RATES_HZ`.
    """
    try:
        if (kind := name_kind(path)) != "a file":  # opening a pipe or a device would wait for ever
            raise AudioError(path, f"cannot be read as audio ({kind})", "give a recording")
        with soundfile.SoundFile(path) as file:
            rate_hz, announced_samples, log = file.samplerate, file.frames, file.extra_info
            _check_header(path, file, max_seconds)
            most = -1 if math.isinf(max_seconds) else int(max_seconds * rate_hz) + 1
            samples_SC = file.read(most, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, ValueError, TypeError) as error:  # TypeError: *.raw
        raise AudioError(path, f"cannot be read as audio ({error})", "convert it to WAV or FLAC") from error
    decoded = Decoded(samples_SC, rate_hz)
    if decoded.seconds > max_seconds:  # a header may announce less, or nothing
        raise AudioError(path, f"lasts more than {max_seconds:g} s", "cut it, or raise --max-seconds")
    if _is_cut_off(log) or announced_samples / rate_hz - decoded.seconds > SHORTEST_SECONDS:
        raise AudioError(path, f"breaks off after {decoded.seconds:.3f} s", "copy or convert it again")
    if not np.isfinite(samples_SC).all():
        raise AudioError(path, "holds samples that are NaN or infinite", "export it again")
    return decoded


def to_waveform(decoded: Decoded) -> Tensor:
    """waveform_S: float32, channels averaged, resampled to `SAMPLE_RATE_HZ`."""
    samples_S = decoded.samples_SC.mean(axis=1)
    if decoded.rate_hz != SAMPLE_RATE_HZ:
        samples_S = soxr.resample(samples_S, decoded.rate_hz, SAMPLE_RATE_HZ, quality="HQ")
    return torch.from_numpy(np.ascontiguousarray(samples_S, dtype=np.float32))


def name_kind(path: str | Path) -> str:
    """What stands in a recording's place: "a file", "a folder", "a pipe", ... or "no such file".

    Raises:
        OSError: nobody can look: a loop of links, a name too long, no permission.
        ValueError: the path holds a NUL.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "no such file"
    return KINDS.get(stat.S_IFMT(mode), "no file")


def _check_header(path: str | Path, file: soundfile.SoundFile, max_seconds: float) -> None:
    if file.samplerate not in RATES_HZ:
        raise AudioError(path, f"has a sample rate of {file.samplerate} Hz", "its header is damaged")
    if file.channels > MOST_CHANNELS:
        raise AudioError(path, f"has {file.channels} channels", "mix it down to one, the speaker's")
    announced_seconds = file.frames / file.samplerate
    if announced_seconds > max_seconds and file.frames < LENGTH_UNKNOWN:
        raise AudioError(
            path,
            f"lasts {announced_seconds:.1f} s, more than {max_seconds:g} s",
            "cut it, or raise --max-seconds",
        )


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
    with whole_file(path) as unfinished:
        # libsndfile clips.
        soundfile.write(unfinished, samples, SAMPLE_RATE_HZ)
