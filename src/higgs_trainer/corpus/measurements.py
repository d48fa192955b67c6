"""What a recording is like: measured while it is decoded, and held against limits.

Everything here is about one file; what only the whole corpus shows is in `corpus.py`.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from higgs_trainer.audio.files import SHORTEST_SECONDS, Decoded, decode_file

FULL_SCALE = 0.99  # a sample beyond this counts as clipped
LOUDEST_PEAK = 2.0  # codecs of lossy formats overshoot 1 a little; integers written as floats reach 32767
CANCELLING = 0.1  # a mono peak below this share of the channels' means that they are each other's opposite
LEVEL_FRAME_SECONDS = 0.02
SPEECH_BELOW_PEAK_DB = 40.0
SILENT_DBFS = -120.0  # stands for minus infinity


@dataclass(frozen=True)
class Limits:
    """What a recording, a transcript and a corpus must keep to. Each is an option of `higgs-trainer prepare`."""

    min_seconds: float = SHORTEST_SECONDS
    max_seconds: float = 120.0
    min_sample_rate_hz: int = 8_000
    min_peak_dbfs: float = -50.0
    max_clipped_percent: float = 1.0
    max_pace_factor: float = 4.0
    allow_duplicates: bool = False


@dataclass(frozen=True)
class Recording:
    """The measures of a file. `content_hash` is of the decoded sound: a copy in FLAC has that of the WAV file."""

    content_hash: str
    seconds: float
    speech_seconds: float
    sample_rate_hz: int
    channels: int
    peak_dbfs: float
    loudness_dbfs: float
    clipped_percent: float
    cancelled: bool


def measure_recording(path: str | Path, *, max_seconds: float) -> Recording:
    """Decode a file and measure it.

    Raises:
        AudioError: as `decode_file`.
    """
    decoded = decode_file(path, max_seconds=max_seconds)
    magnitudes_SC = np.abs(decoded.samples_SC)
    mono_S = decoded.samples_SC.mean(axis=1)
    peak, loudest_channel = (float(values.max(initial=0.0)) for values in (np.abs(mono_S), magnitudes_SC))
    first_frame, last_frame, levels_dbfs = _find_speech(mono_S, decoded.rate_hz)
    return Recording(
        content_hash=hash_content(decoded),
        seconds=decoded.seconds,
        speech_seconds=min((last_frame - first_frame) * LEVEL_FRAME_SECONDS, decoded.seconds),
        sample_rate_hz=decoded.rate_hz,
        channels=decoded.samples_SC.shape[1],
        peak_dbfs=to_dbfs(peak),
        loudness_dbfs=_mean_dbfs(levels_dbfs[first_frame:last_frame]),
        clipped_percent=100 * float((magnitudes_SC >= FULL_SCALE).mean()) if magnitudes_SC.size else 0.0,
        cancelled=peak < CANCELLING * loudest_channel,
    )


def hash_content(decoded: Decoded) -> str:
    """32 hexadecimal digits, of the samples and their rate."""
    digest = hashlib.blake2b(str(decoded.rate_hz).encode(), digest_size=16)
    digest.update(decoded.samples_SC.mean(axis=1).tobytes())
    return digest.hexdigest()


def check_recording(recording: Recording, limits: Limits) -> list[tuple[str, str]]:
    """Everything that is wrong with it: (what, what to do) each."""
    problems = []
    if recording.seconds < limits.min_seconds:
        problems.append(
            (f"lasts {recording.seconds:.3f} s, less than {limits.min_seconds:g} s", "record it again")
        )
    if recording.sample_rate_hz < limits.min_sample_rate_hz:
        problems.append(
            (
                f"has a sample rate of {recording.sample_rate_hz} Hz, less than {limits.min_sample_rate_hz} Hz",
                "find the original, or lower --min-sample-rate-hz",
            )
        )
    if recording.cancelled:
        problems.append(("is stereo whose channels cancel each other", "keep one channel"))
    elif recording.peak_dbfs < limits.min_peak_dbfs and recording.seconds > 0:
        problems.append(
            (
                f"holds no sound (its peak is {recording.peak_dbfs:.0f} dBFS)",
                "record it again, or lower --min-peak-dbfs",
            )
        )
    if recording.peak_dbfs > to_dbfs(LOUDEST_PEAK):
        problems.append(
            (
                f"reaches {10 ** (recording.peak_dbfs / 20):.0f}, where full scale is 1",
                "divide its samples and save again",
            )
        )
    elif recording.clipped_percent > limits.max_clipped_percent:
        problems.append(
            (
                f"is clipped ({recording.clipped_percent:.1f}% of its samples at full scale)",
                "find the original, or raise --max-clipped-percent",
            )
        )
    return problems


def name_recording(path: str | Path, file: str | Path) -> str:
    """A recording as messages show it: from the folder of the manifest that names it, where it lies beneath it."""
    shown = os.path.relpath(path, Path(file).parent)
    return str(path) if shown.startswith("..") else shown


def to_dbfs(amplitude: float) -> float:
    """Decibels below full scale; silence is `SILENT_DBFS`."""
    return max(SILENT_DBFS, 20 * float(np.log10(max(amplitude, 1e-12))))


def _find_speech(mono_S: np.ndarray, rate_hz: int) -> tuple[int, int, np.ndarray]:
    """The first frame of `LEVEL_FRAME_SECONDS` that is not silence, the one after the last, and all levels in dBFS.

    A pace is words in this stretch: the silence that a studio leaves before and after a clip says nothing.
    """
    frame_samples = max(1, round(LEVEL_FRAME_SECONDS * rate_hz))
    num_frames = max(1, len(mono_S) // frame_samples)
    frames = mono_S[: num_frames * frame_samples].reshape(num_frames, -1).astype(np.float64)
    powers = (frames**2).mean(axis=1) if frames.size else np.zeros(num_frames)
    levels_dbfs = 10 * np.log10(np.maximum(powers, 1e-12))
    (loud,) = np.nonzero(levels_dbfs >= levels_dbfs.max() - SPEECH_BELOW_PEAK_DB)
    return int(loud[0]), int(loud[-1]) + 1, levels_dbfs


def _mean_dbfs(levels_dbfs: np.ndarray) -> float:
    return float(10 * np.log10((10 ** (levels_dbfs / 10)).mean()))
