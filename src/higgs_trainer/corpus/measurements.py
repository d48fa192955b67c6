"""Measure one recording, and check it against limits. `plausibility.py` checks the corpus as a whole."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from higgs_trainer.audio.files import Decoded, decode_file
from higgs_trainer.limits import SHORTEST_SECONDS

# A larger sample counts as clipped.
FULL_SCALE = 0.99
# Lossy formats overshoot 1 a little. Integers that were written as floats reach 32767.
LOUDEST_PEAK = 2.0
# If the mono peak is below this share of the peak of the channels, the channels cancel each other.
CANCELLING = 0.1
LEVEL_FRAME_SECONDS = 0.02
SPEECH_BELOW_PEAK_DB = 40.0
# The level of digital silence, in place of minus infinity.
SILENT_DBFS = -120.0


@dataclass(frozen=True)
class Limits:
    """Limits of recordings, transcripts and the corpus. Each is an option of `higgs-trainer prepare`."""

    min_seconds: float = SHORTEST_SECONDS
    max_seconds: float = 120.0
    min_sample_rate_hz: int = 8_000
    min_peak_dbfs: float = -50.0
    max_clipped_percent: float = 1.0
    max_pace_factor: float = 4.0
    allow_duplicates: bool = False


@dataclass(frozen=True)
class Measurement:
    """The measurements of a recording.

    ``content_hash`` is a hash of the decoded samples: a FLAC copy of a WAV file has the same hash. ``cancelled`` means
    that the channels cancel each other.
    """

    content_hash: str
    seconds: float
    speech_seconds: float
    sample_rate_hz: int
    channels: int
    peak_dbfs: float
    loudness_dbfs: float
    clipped_percent: float
    cancelled: bool


def measure_recording(path: str | Path, *, max_seconds: float) -> Measurement:
    """Decode a file and measure it.

    Raises:
        AudioError: as `decode_file`.
    """
    decoded = decode_file(path, max_seconds=max_seconds, what_to_do="Cut it, or raise --max-seconds.")
    magnitudes_SC = np.abs(decoded.samples_SC)
    mono_S = decoded.samples_SC.mean(axis=1)
    peak, loudest_channel = (float(values.max(initial=0.0)) for values in (np.abs(mono_S), magnitudes_SC))
    first_frame, last_frame, levels_dbfs = _find_speech(mono_S, decoded.rate_hz)
    return Measurement(
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
    """Hash the samples and their rate to 32 hexadecimal digits."""
    digest = hashlib.blake2b(str(decoded.rate_hz).encode(), digest_size=16)
    digest.update(decoded.samples_SC.mean(axis=1).tobytes())
    return digest.hexdigest()


def find_problems(recording: Measurement, limits: Limits) -> list[tuple[str, str]]:
    """Return (problem, remedy) for each limit that a recording violates."""
    if recording.seconds == 0:
        return [("is empty: it has no samples", "Record it again, or leave out the row.")]
    problems = []
    if recording.seconds < limits.min_seconds:
        problems.append(
            (f"lasts {recording.seconds:.3f} s, less than {limits.min_seconds:g} s", "Record it again.")
        )
    if recording.sample_rate_hz < limits.min_sample_rate_hz:
        problems.append(
            (
                f"has a sample rate of {recording.sample_rate_hz} Hz, less than {limits.min_sample_rate_hz} Hz",
                "Find the original, or lower --min-sample-rate-hz.",
            )
        )
    if recording.cancelled:
        problems.append(("has two channels that cancel each other", "Keep one channel."))
    elif recording.peak_dbfs < limits.min_peak_dbfs:
        problems.append(
            (
                f"is silent (its peak is {recording.peak_dbfs:.0f} dBFS)",
                "Record it again, or lower --min-peak-dbfs.",
            )
        )
    if recording.peak_dbfs > to_dbfs(LOUDEST_PEAK):
        problems.append(
            (
                f"has samples up to {10 ** (recording.peak_dbfs / 20):.0f}, but full scale is 1",
                "Scale its samples and save it again.",
            )
        )
    elif recording.clipped_percent > limits.max_clipped_percent:
        problems.append(
            (
                f"is clipped ({recording.clipped_percent:.1f}% of its samples at full scale)",
                "Find the original, or raise --max-clipped-percent.",
            )
        )
    return problems


def name_recording(path: str | Path, file: str | Path) -> str:
    """Return the path of a recording for messages: relative to the folder of its manifest, if it is inside."""
    shown = os.path.relpath(path, Path(file).parent)
    return str(path) if shown.startswith("..") else shown


def to_dbfs(amplitude: float) -> float:
    """Convert an amplitude to decibels relative to full scale, at least `SILENT_DBFS`."""
    return max(SILENT_DBFS, 20 * float(np.log10(max(amplitude, 1e-12))))


def _find_speech(mono_S: np.ndarray, rate_hz: int) -> tuple[int, int, np.ndarray]:
    """Return the first frame that is not silence, the one after the last, and the levels of all frames in dBFS.

    A frame has `LEVEL_FRAME_SECONDS`. The pace of a recording is measured between these frames, without the silence
    before and after them.
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
