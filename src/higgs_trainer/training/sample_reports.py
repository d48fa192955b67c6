"""Send generated samples, with their sound, to TensorBoard, Trackio and Weights & Biases.

The callbacks of ``report_to`` start and end the runs of these tools. A sample is sent through the same run: by the
writer of transformers' `TensorBoardCallback`, and by ``log`` of the other two.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from higgs_trainer.run_folder import CLIP_INDEX_FILE

# The x axis of transformers' own callbacks.
STEP = "train/global_step"


@dataclass(frozen=True)
class Sample:
    """A generated clip. It has the same ``tag`` at every step, so that a tool shows its history."""

    tag: str
    text: str
    audio: Path


def read_samples(folder: Path) -> list[Sample]:
    """List the clips in a folder that `ClipFolder` wrote."""
    lines = (folder / CLIP_INDEX_FILE).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [Sample(f"samples/{Path(row['audio']).stem}", row["text"], folder / row["audio"]) for row in rows]


def _send_to_tensorboard(callback: Any, samples: Sequence[Sample], step: int) -> bool:
    writer = callback.tb_writer
    if writer is None:
        return False
    for sample in samples:
        waveform_S, sample_rate_hz = soundfile.read(sample.audio, dtype="float32")
        writer.add_audio(sample.tag, waveform_S, step, sample_rate=sample_rate_hz)
        writer.add_text(f"{sample.tag}/text", sample.text, step)
    writer.flush()
    return True


def _send_to_trackio(callback: Any, samples: Sequence[Sample], step: int) -> bool:
    import trackio

    if trackio.context_vars.current_run.get() is None:
        return False
    clips = {sample.tag: trackio.Audio(sample.audio, caption=sample.text) for sample in samples}
    trackio.log({**clips, STEP: step})
    return True


def _send_to_wandb(callback: Any, samples: Sequence[Sample], step: int) -> bool:
    import wandb

    if wandb.run is None:
        return False
    clips = {sample.tag: wandb.Audio(str(sample.audio), caption=sample.text) for sample in samples}
    wandb.log({**clips, STEP: step})
    return True


SENDERS: dict[type[TrainerCallback], Callable[[Any, Sequence[Sample], int], bool]] = {
    TensorBoardCallback: _send_to_tensorboard,
    TrackioCallback: _send_to_trackio,
    WandbCallback: _send_to_wandb,
}
"""The callbacks that take sound. Each function returns False while the run of its tool has not started."""


def send_samples(callbacks: Sequence[TrainerCallback], folder: Path, step: int) -> bool:
    """Send the clips in a folder to every callback that takes sound, or to none.

    Returns:
        False if nothing was sent, because the run of a tool has not started.
    """
    reporters = [callback for callback in callbacks if isinstance(callback, tuple(SENDERS))]
    samples = read_samples(folder) if reporters else []
    return all(_find_sender(reporter)(reporter, samples, step) for reporter in reporters)


def _find_sender(reporter: TrainerCallback) -> Callable[[Any, Sequence[Sample], int], bool]:
    return next(send for kind, send in SENDERS.items() if isinstance(reporter, kind))


def add_before_reporters(trainer: Trainer, callback: TrainerCallback) -> None:
    """Add a callback to a trainer before those that take sound.

    These close their tools when training ends, and the last samples are generated at that time too.
    """
    reporters = [one for one in trainer.callback_handler.callbacks if isinstance(one, tuple(SENDERS))]
    for reporter in reporters:
        trainer.remove_callback(reporter)
    trainer.add_callback(callback)
    for reporter in reporters:
        trainer.add_callback(reporter)
