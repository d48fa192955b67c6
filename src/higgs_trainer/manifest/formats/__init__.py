"""Importers: other formats to rows of our own manifest. Formats are detected by content.

Each format is one file and one entry of `FORMATS`. An importer only maps fields; `row_checker.py` checks the rows,
whatever their format. docs/data_formats.md has a sample of each.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from higgs_trainer.errors import UserError, shorten
from higgs_trainer.hub_names import find_similar
from higgs_trainer.input_files import name_kind, name_reason
from higgs_trainer.manifest.formats import (
    audio_folder,
    hf_dataset,
    json_lines,
    ljspeech,
    ms_swift,
    qwen3_tts,
    sentences,
    table,
    text_folder,
    train_higgs_audio,
)
from higgs_trainer.manifest.formats.source import DataSource, RawRow, raise_unreadable

__all__ = ["FORMATS", "DataSource", "Format", "RawRow", "detect_format", "open_sentences", "open_source"]


@dataclass(frozen=True)
class Format:
    """A known format. ``matches`` reads only the beginning; ``read_rows`` streams."""

    name: str
    matches: Callable[[Path], bool]
    read_rows: Callable[[DataSource], Iterator[RawRow]]


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
"""The formats in the order of detection. The first match is used, so specific formats precede general ones."""


def open_source(path: str | Path, *, audio_folder: str | Path | None = None) -> DataSource:
    """Detect the format of the data at ``path`` and open it.

    Args:
        audio_folder: where recordings are written that are not files yet. None: a folder next to the data.

    Raises:
        UserError: ``path`` does not exist, or its content is in no known format.
    """
    path = Path(path)
    detected = detect_format(path)
    if audio_folder is None:
        audio_folder = path.parent / f"{path.name.replace(':', '-')}-audio"
    return DataSource(path, detected.name, detected.read_rows, Path(audio_folder))


def open_sentences(path: str | Path) -> DataSource:
    """Open what `generate` and `evaluate` read: JSON lines, or plain text with one sentence per line.

    Raises:
        UserError: the file cannot be read.
    """
    path = Path(path)
    if json_lines.first_line(path).startswith("{"):
        return DataSource(path, "JSON lines", json_lines.read_rows, path.parent)
    return DataSource(path, "sentences", sentences.read_rows, path.parent)


def detect_format(path: Path) -> Format:
    """Detect the format of a file, a folder or the name of a dataset. Raises UserError as `open_source` does."""
    kind = _name_kind(path)
    if kind not in ("a file", "a folder", "no such file"):
        raise UserError(f"{path} is {kind}. {json_lines.GIVE_DATA}")
    try:
        for known in FORMATS:
            if known.matches(path):
                return known
    except OSError as error:
        raise_unreadable(error)
    if kind == "no such file":
        near = find_similar(path)
        remedy = f"Did you mean {near}?" if near else json_lines.GIVE_DATA
        raise UserError(f"{path} cannot be read (No such file or directory). {remedy}")
    if kind == "a file":
        json_lines.check_first_lines(path)
    names = ", ".join(known.name for known in FORMATS)
    raise UserError(f"the format of {path} is unknown. Known formats: {names} (docs/data_formats.md).")


def _name_kind(path: Path) -> str:
    try:
        return name_kind(path)
    except (OSError, ValueError) as error:
        what = f"{shorten(str(path))} cannot be read ({name_reason(error)})"
        raise UserError(f"{what}. {json_lines.GIVE_DATA}") from error
