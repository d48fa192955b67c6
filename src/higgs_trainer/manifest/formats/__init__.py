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
from higgs_trainer.manifest.formats.columns import (
    AUDIO_SUFFIXES,
    NO_COLUMNS,
    Columns,
    check_chosen,
    guess_columns,
    suggest_columns,
)
from higgs_trainer.manifest.formats.source import DataSource, RawRow, raise_unreadable
from higgs_trainer.manifest.formats.unknown import build_unknown_error

__all__ = ["FORMATS", "DataSource", "Format", "RawRow", "detect_format", "open_sentences", "open_source"]


@dataclass(frozen=True)
class Format:
    """A known format. ``matches`` reads only the beginning; ``read_rows`` streams."""

    name: str
    matches: Callable[[Path], bool]
    read_rows: Callable[[DataSource], Iterator[RawRow]]


HF_DATASET = Format("Hugging Face dataset", hf_dataset.matches, hf_dataset.read_rows)
TABLE = Format("table", table.matches, table.read_rows)
JSON_LINES = Format("JSON lines", json_lines.matches, json_lines.read_rows)

FORMATS: tuple[Format, ...] = (
    HF_DATASET,
    Format("audio folder", audio_folder.matches, audio_folder.read_rows),
    Format("train-higgs-audio", train_higgs_audio.matches, train_higgs_audio.read_rows),
    Format("LJSpeech", ljspeech.matches, ljspeech.read_rows),
    Format("ms-swift", ms_swift.matches, ms_swift.read_rows),
    Format("Qwen3-TTS", qwen3_tts.matches, qwen3_tts.read_rows),
    TABLE,
    Format("folder of texts", text_folder.matches, text_folder.read_rows),
    JSON_LINES,
)
"""The formats in the order of detection. The first match is used, so specific formats precede general ones."""

NAMES = tuple(known.name for known in FORMATS)


def open_source(
    path: str | Path, *, audio_folder: str | Path | None = None, columns: Columns = NO_COLUMNS
) -> DataSource:
    """Detect the format of the data at ``path`` and open it.

    Args:
        audio_folder: where recordings are written that are not files yet. None: a folder next to the data.
        columns: the columns of a table, JSON lines or a Hugging Face dataset, by manifest field. Fields that are not
            listed are found by their usual names.

    Raises:
        UserError: ``path`` does not exist, its content is in no known format, or it has no such column.
    """
    path = Path(path)
    detected = _detect_by_columns(path, columns) if columns else detect_format(path)
    if audio_folder is None:
        audio_folder = path.parent / f"{path.name.replace(':', '-')}-audio"
    return DataSource(path, detected.name, detected.read_rows, Path(audio_folder), columns)


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
    kind = _check_kind(path)
    try:
        if path.suffix.lower() in AUDIO_SUFFIXES and kind == "a file":
            raise build_unknown_error(path, NAMES)
        for known in FORMATS:
            if known.matches(path):
                if known is JSON_LINES:
                    _check_keys(path)
                return known
        if kind == "no such file":
            near = find_similar(path)
            remedy = f"Did you mean {near}?" if near else json_lines.GIVE_DATA
            raise UserError(f"{path} cannot be read (No such file or directory). {remedy}")
        raise build_unknown_error(path, NAMES)
    except OSError as error:
        raise_unreadable(error)


def _detect_by_columns(path: Path, columns: Columns) -> Format:
    """Detect the format of data whose columns the user named.

    Raises:
        UserError: the data has no columns, or not these.
    """
    _check_kind(path)
    try:
        if hf_dataset.matches(path):
            return HF_DATASET
        if not path.is_file():
            raise UserError(
                f"--columns needs a table, JSON lines or a Hugging Face dataset, and {path} is none."
            )
        if json_lines.matches(path):
            check_chosen(str(path), [key for row in json_lines.first_objects(path) for key in row], columns)
            return JSON_LINES
        if table.find_layout(path, columns) is not None:
            return TABLE
        names, rows = table.peek(path)
    except OSError as error:
        raise_unreadable(error)
    check_chosen(str(path), names, columns)
    raise UserError(
        f"{path} is a table with the columns {', '.join(names)}, of which --columns names no recording or no text. "
        + suggest_columns(rows)
    )


def _check_keys(path: Path) -> None:
    """Raise UserError if the objects of JSON lines have a recording or a text only under other names."""
    rows = json_lines.first_objects(path)
    keys = {key for row in rows for key in row}
    guessed = guess_columns(rows)
    if not {"audio", "text"} <= keys and {"audio", "text"} <= guessed.keys():
        raise UserError(
            f"{path} has the fields {', '.join(sorted(keys))}. One must be the path of a recording, and one its text. "
            + suggest_columns(rows)
        )


def _check_kind(path: Path) -> str:
    """Return what a path leads to. Raises UserError if it can hold no data."""
    kind = _name_kind(path)
    if kind not in ("a file", "a folder", "no such file"):
        raise UserError(f"{path} is {kind}. {json_lines.GIVE_DATA}")
    return kind


def _name_kind(path: Path) -> str:
    try:
        return name_kind(path)
    except (OSError, ValueError) as error:
        what = f"{shorten(str(path))} cannot be read ({name_reason(error)})"
        raise UserError(f"{what}. {json_lines.GIVE_DATA}") from error
