"""Other tools' formats -> rows of our own manifest, told apart by content. Each is a file and a row of `FORMATS`.

An importer only says what stands where; whether a row is right is `manifest.py`'s to say, whatever the format was.
docs/data_formats.md has a sample of each.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from higgs_trainer.errors import UserError
from higgs_trainer.manifest.formats import (
    audio_folder,
    hf_dataset,
    json_lines,
    ljspeech,
    ms_swift,
    qwen3_tts,
    table,
    text_folder,
    train_higgs_audio,
)
from higgs_trainer.manifest.formats.source import RawRow, Source

__all__ = ["FORMATS", "Format", "RawRow", "Source", "detect_format", "open_source"]


@dataclass(frozen=True)
class Format:
    """A format that can be read. ``matches`` looks at the beginning alone, ``read_rows`` streams."""

    name: str
    matches: Callable[[Path], bool]
    read_rows: Callable[[Source], Iterator[RawRow]]


FORMATS: tuple[Format, ...] = (
    Format("Hugging Face dataset", hf_dataset.matches, hf_dataset.read_rows),
    Format("audio folder", audio_folder.matches, audio_folder.read_rows),
    Format("train-higgs-audio", train_higgs_audio.matches, train_higgs_audio.read_rows),
    Format("LJSpeech", ljspeech.matches, ljspeech.read_rows),
    Format("ms-swift", ms_swift.matches, ms_swift.read_rows),
    Format("Qwen3-TTS", qwen3_tts.matches, qwen3_tts.read_rows),
    Format("table", table.matches, table.read_rows),
    Format("folder of texts", text_folder.matches, text_folder.read_rows),
    Format("JSON lines", json_lines.matches, json_lines.read_rows),
)
"""In the order in which they are tried: the first that matches reads, so the particular comes before the general."""


def open_source(path: str | Path, *, audio_folder: str | Path | None = None) -> Source:
    """The data at ``path``, its format found.

    ``audio_folder``: where recordings are written that are not files yet; beside the data if None.

    Raises:
        UserError: nothing is there, or its content is in no known format.
    """
    path = Path(path)
    its_format = detect_format(path)
    if audio_folder is None:
        audio_folder = path.parent / f"{path.name.replace(':', '-')}-audio"
    return Source(path, its_format.name, its_format.read_rows, Path(audio_folder))


def detect_format(path: Path) -> Format:
    """The format of a file, folder or dataset's name. Raises UserError as `open_source`."""
    for known in FORMATS:
        if known.matches(path):
            return known
    if not path.exists():
        raise UserError(f"{path} cannot be read (No such file or directory); give a file or folder of data")
    names = ", ".join(known.name for known in FORMATS)
    raise UserError(
        f"{path} is in no format that is known by its content ({names}); see docs/data_formats.md"
    )
