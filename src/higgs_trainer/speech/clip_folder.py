"""A folder of generated clips: WAV files, and ``index.jsonl`` with one line for each.

Each clip is written as soon as it is generated, so a job that is killed leaves the clips that it had finished. Its
index is then in the order in which the clips were finished; a job that succeeds sorts it by the order of the requests.
"""

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from higgs_trainer.audio.codec import Codec
from higgs_trainer.audio.files import write_audio
from higgs_trainer.files import to_json_line, write_text
from higgs_trainer.run_folder import CLIP_INDEX_FILE, ClipLine, name_clip


@dataclass(frozen=True)
class GeneratedCodes:
    """The codes that a model generated for one text.

    Attributes:
        stopped: whether the model ended the clip, and each of its parts, before the limit of ``max_seconds``.
        num_parts: the number of parts into which a long text was split.
    """

    text: str
    codes_FK: Tensor
    stopped: bool
    num_parts: int = 1


def decode_generated(clip: GeneratedCodes, codec: Codec) -> Tensor:
    """Decode a clip to a waveform (S,). A clip without codes becomes a tenth of a second of silence."""
    if not len(clip.codes_FK):
        return torch.zeros(codec.sample_rate_hz // 10)
    return codec.decode(clip.codes_FK)


class ClipFolder:
    """Write clips into a folder one by one. Leaving the ``with`` block without an exception sorts the index."""

    def __init__(self, folder: str | Path, codec: Codec) -> None:
        self.folder = Path(folder)
        self.codec = codec
        self.lines: dict[int, str] = {}

    def __enter__(self) -> "ClipFolder":
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / CLIP_INDEX_FILE).write_text("", encoding="utf-8")
        return self

    def write(self, number: int, clip: GeneratedCodes, *, seed: int | None = None) -> Tensor:
        """Write one clip as ``NNNN.wav``, then its line in the index, and return its waveform (S,).

        Args:
            seed: the seed of the clip, noted in its line.
        """
        waveform_S = decode_generated(clip, self.codec)
        name = name_clip(number)
        write_audio(self.folder / name, waveform_S)
        line: ClipLine = {
            "text": clip.text,
            "audio": name,
            "seconds": len(clip.codes_FK) / self.codec.frames_per_second,
            "stopped": clip.stopped,
            "parts": clip.num_parts,
        }
        if seed is not None:
            line["seed"] = seed
        self.lines[number] = to_json_line(line)
        with (self.folder / CLIP_INDEX_FILE).open("a", encoding="utf-8") as index:
            index.write(self.lines[number])
        return waveform_S

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            write_text(self.folder / CLIP_INDEX_FILE, "".join(self.lines[i] for i in sorted(self.lines)))
