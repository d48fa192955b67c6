"""Read and write audio files. A waveform is float32, mono, 24 kHz, in [-1, 1]."""

import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from higgs_trainer.errors import AudioError
from higgs_trainer.files import write_bytes
from higgs_trainer.input_files import MACHINE_FAULTS, name_kind
from higgs_trainer.limits import (
    LONGEST_REFERENCE_SECONDS,
    LONGEST_SPEECH_SECONDS,
    MOST_CHANNELS,
    MOST_SAMPLES,
    SAMPLE_RATES_HZ,
    SHORTEST_SECONDS,
    USUAL_RATE_HZ,
)

SAMPLE_RATE_HZ = 24_000
CUT_OFF = re.compile(r"^ *(?:data|SSND) *: *(\d+) \(should be (\d+)\)", re.MULTILINE)
LENGTH_UNKNOWN = 2**31 - 2**16
CUT_IT = "Cut it."
# Samples of all channels that are decoded at once: 4 MB.
BLOCK_SAMPLES = 2**20


@dataclass(frozen=True)
class Decoded:
    """The content of an audio file: `samples_SC`, float32, C channels, at its own sample rate."""

    samples_SC: np.ndarray
    rate_hz: int

    @property
    def seconds(self) -> float:
        return len(self.samples_SC) / self.rate_hz


def read_audio(path: str | Path, *, max_seconds: float = LONGEST_REFERENCE_SECONDS) -> Tensor:
    """Read any format that libsndfile supports (WAV, FLAC, OGG/Opus, MP3, ...), whatever the suffix.

    Returns:
        waveform_S: float32, channels averaged, resampled to `SAMPLE_RATE_HZ`.

    Raises:
        AudioError: as `decode_file`, or the recording is shorter than `SHORTEST_SECONDS`.
    """
    decoded = decode_file(path, max_seconds=max_seconds)
    if decoded.seconds < SHORTEST_SECONDS:
        raise AudioError(
            path,
            f"lasts {decoded.seconds:.3f} s, less than {SHORTEST_SECONDS} s",
            "Give a longer recording.",
        )
    return to_waveform(decoded)


def decode_file(
    path: str | Path, *, max_seconds: float = LONGEST_SPEECH_SECONDS, what_to_do: str = CUT_IT
) -> Decoded:
    """Read the samples of a file, in blocks: no more than `max_seconds` are decoded, whatever its header announces.

    At extreme sample rates the limit is lower: `MOST_SAMPLES`, or those of `max_seconds` in stereo at 48 kHz.

    Args:
        what_to_do: the remedy for a recording that is too long, a sentence.

    Raises:
        AudioError: it is not a regular file, cannot be decoded, ends early, is not finite, is longer than
            `max_seconds`, or has more than `MOST_CHANNELS` channels or a sample rate outside `SAMPLE_RATES_HZ`.
    """
    try:
        # Opening a pipe or a device could block forever.
        if (kind := name_kind(path)) != "a file":
            raise AudioError(path, f"cannot be read as audio ({kind})", "Give a recording.")
        with soundfile.SoundFile(path) as file:
            rate_hz, announced_samples, log = file.samplerate, file.frames, file.extra_info
            most_samples = max(MOST_SAMPLES, int(max_seconds * MOST_CHANNELS * USUAL_RATE_HZ))
            most_seconds = min(max_seconds, most_samples / rate_hz / file.channels)
            _check_header(path, file, most_seconds, what_to_do)
            samples_SC = _read_samples(file, at_most=int(most_seconds * rate_hz) + 1)
    # soundfile raises TypeError for *.raw.
    except (soundfile.LibsndfileError, OSError, ValueError, TypeError) as error:
        _raise_machine_fault(path)
        raise AudioError(path, f"cannot be read as audio ({error})", "Convert it to WAV or FLAC.") from error
    decoded = Decoded(samples_SC, rate_hz)
    # The header may have announced less, or nothing.
    if decoded.seconds > most_seconds:
        raise AudioError(path, f"lasts more than {most_seconds:g} s", what_to_do)
    if _is_cut_off(log) or announced_samples / rate_hz - decoded.seconds > SHORTEST_SECONDS:
        raise AudioError(path, f"ends early, after {decoded.seconds:.3f} s", "Copy or convert it again.")
    if not np.isfinite(samples_SC).all():
        raise AudioError(path, "contains NaN or infinite samples", "Export it again.")
    return decoded


def _raise_machine_fault(path: str | Path) -> None:
    """Raise OSError if not the file is to blame, but too many open files or the like: libsndfile does not say which."""
    try:
        with open(path, "rb"):
            return
    except OSError as error:
        if error.errno in MACHINE_FAULTS:
            raise


def to_waveform(decoded: Decoded) -> Tensor:
    """Average the channels and resample to `SAMPLE_RATE_HZ`: waveform_S, float32."""
    samples_S = decoded.samples_SC.mean(axis=1)
    if decoded.rate_hz != SAMPLE_RATE_HZ:
        samples_S = soxr.resample(samples_S, decoded.rate_hz, SAMPLE_RATE_HZ, quality="HQ")
    return torch.from_numpy(np.ascontiguousarray(samples_S, dtype=np.float32))


def _read_samples(file: soundfile.SoundFile, *, at_most: int) -> np.ndarray:
    """Read samples (S, C) until the file ends. Memory grows with what is decoded, not with what is announced."""
    block = max(1, min(at_most, BLOCK_SAMPLES // file.channels))
    blocks: list[np.ndarray] = []
    while at_most > 0 and len(read_SC := file.read(min(block, at_most), dtype="float32", always_2d=True)):
        blocks.append(read_SC)
        at_most -= len(read_SC)
    if len(blocks) == 1:
        return blocks[0]
    return np.concatenate([np.empty((0, file.channels), np.float32), *blocks])


def _check_header(path: str | Path, file: soundfile.SoundFile, max_seconds: float, what_to_do: str) -> None:
    if file.samplerate not in SAMPLE_RATES_HZ:
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
            what_to_do,
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
