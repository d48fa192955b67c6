"""A folder of spoken clips: WAV files, and ``index.jsonl`` with a line for each. Every file in it is whole.

A clip is written when it is finished, so a job that dies leaves what it had spoken. The index then stands in the order
in which clips were finished; a job that ends well leaves it in the order of the requests.
"""

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from higgs_trainer.audio.codec import Codec
from higgs_trainer.audio.files import write_audio
from higgs_trainer.errors import UserError
from higgs_trainer.files import to_json_line, write_text
from higgs_trainer.run_folder import CLIP_INDEX_FILE, name_clip


@dataclass(frozen=True)
class GeneratedCodes:
    """One text, spoken. ``stopped``: the model ended the clip itself, every part of it, before the limit of
    ``max_seconds``. ``num_parts``: into how many a long text was cut."""

    text: str
    codes_FK: Tensor
    stopped: bool
    num_parts: int = 1


def decode_generated(clip: GeneratedCodes, codec: Codec) -> Tensor:
    """The waveform (S,); where the model said nothing at all, a tenth of a second of silence."""
    if not len(clip.codes_FK):
        return torch.zeros(codec.sample_rate_hz // 10)
    return codec.decode(clip.codes_FK)


def check_is_empty(folder: str | Path) -> None:
    """``UserError`` where the folder holds files already."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty; give another folder for the WAV files")


class ClipFolder:
    """Writes clips into a folder one by one; leaving the ``with`` block in peace puts the index in order."""

    def __init__(self, folder: str | Path, codec: Codec) -> None:
        self.folder = Path(folder)
        self.codec = codec
        self.lines: dict[int, str] = {}

    def __enter__(self) -> "ClipFolder":
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / CLIP_INDEX_FILE).write_text("", encoding="utf-8")
        return self

    def write(self, number: int, clip: GeneratedCodes, **noted: Any) -> Tensor:
        """Write one clip as ``NNNN.wav``, then its line: text, audio, seconds, stopped, parts, and what is ``noted``.
        Returns its waveform (S,). ``seconds`` is 0 where the model said nothing."""
        waveform_S = decode_generated(clip, self.codec)
        name = name_clip(number)
        write_audio(self.folder / name, waveform_S)
        line = {
            "text": clip.text,
            "audio": name,
            "seconds": len(clip.codes_FK) / self.codec.frames_per_second,
            "stopped": clip.stopped,
            "parts": clip.num_parts,
            **noted,
        }
        self.lines[number] = to_json_line(line)
        with (self.folder / CLIP_INDEX_FILE).open("a", encoding="utf-8") as index:
            index.write(self.lines[number])
        return waveform_S

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            write_text(self.folder / CLIP_INDEX_FILE, "".join(self.lines[i] for i in sorted(self.lines)))
