"""CSV, TSV and tables whose columns are parted by `|`, with a line of names or without.

Commas are read as CSV, with quotes. Tabs and bars part columns wherever they stand, and quotes belong to the text, as
in LJSpeech and Common Voice. Without names, a table has two columns: the recording's path and its text.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from higgs_trainer.errors import Problem
from higgs_trainer.manifest.formats.columns import AUDIO_SUFFIXES, check_columns, is_readable, match_columns
from higgs_trainer.manifest.formats.json_lines import first_line, read_lines
from higgs_trainer.manifest.formats.source import RawRow, Source, describe_problem

DELIMITERS = ("|", "\t", ",")


@dataclass(frozen=True)
class Layout:
    """How a table is written: what parts its columns, and the columns' names where its first line has them."""

    delimiter: str
    names: tuple[str, ...] | None


def matches(path: Path) -> bool:
    """A file whose first line names an audio and a text column, or begins with an audio file's name."""
    return path.is_file() and find_layout(path) is not None


def find_layout(path: Path) -> Layout | None:
    """How the table is written, by its first line; None where it is no table that can be read."""
    line = first_line(path)
    if "\0" in line or line.startswith("{"):
        return None
    for delimiter in DELIMITERS:
        names = tuple(name.strip() for name in split_line(line, delimiter))
        if is_readable(match_columns(names)):
            return Layout(delimiter, names)
    for delimiter in DELIMITERS:
        cells = split_line(line, delimiter)
        if len(cells) > 1 and Path(cells[0].strip()).suffix.lower() in AUDIO_SUFFIXES:
            return Layout(delimiter, None)
    return None


def split_line(line: str, delimiter: str) -> list[str]:
    """The cells of a line that holds a whole row."""
    return next(csv.reader([line])) if delimiter == "," else line.split(delimiter)


def read_rows(source: Source) -> Iterator[RawRow]:
    """The rows. A column without a name of ours is counted as unused; an empty cell is a field that is not given."""
    layout = find_layout(source.path)
    assert layout is not None  # `matches` has seen it
    names = layout.names or ("audio", "text")
    fields = match_columns(names)
    check_columns(f"{source.path}:1", names, fields)
    is_names_line = layout.names is not None
    for line, cells in read_cells(source.path, layout.delimiter):
        if isinstance(cells, Problem):
            yield RawRow(source.path, line, line, None, (cells,))
        elif is_names_line:
            is_names_line = False
        elif len(cells) != len(names):
            what = f"{len(cells)} columns where {len(names)} are expected"
            yield describe_problem(source.path, line, line, what, _mend(layout))
        else:
            source.unused.update(name for name, field in zip(names, fields, strict=True) if not field)
            yield RawRow(source.path, line, line, _name_cells(cells, fields))


def read_cells(path: Path, delimiter: str) -> Iterator[tuple[int, list[str] | Problem]]:
    """The cells of each row that is not blank, with the line on which the row begins."""
    if delimiter == ",":
        yield from _read_csv(path)
        return
    for line, text in read_lines(path):
        if isinstance(text, Problem):
            yield line, text
        elif text.strip():
            yield line, text.split(delimiter)


def _read_csv(path: Path) -> Iterator[tuple[int, list[str] | Problem]]:
    problems: list[tuple[int, Problem]] = []

    def feed() -> Iterator[str]:
        for line, text in read_lines(path):
            if isinstance(text, Problem):
                problems.append((line, text))
            yield "\n" if isinstance(text, Problem) else text + "\n"

    reader = csv.reader(feed(), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield line, Problem(path, line, f"not CSV ({error})", "close its quotes, and double those inside")
        else:
            if any(cell.strip() for cell in cells):
                yield line, cells
    yield from problems


def _name_cells(cells: Sequence[str], fields: Sequence[str | None]) -> dict[str, object]:
    """The cells by their fields. An empty one is not given, save where it must be: then the checker says so."""
    row: dict[str, object] = {}
    for cell, field in zip(cells, fields, strict=True):
        if field and (cell.strip() or field in ("audio", "text")):
            row[field] = _read_number(cell) if field == "reward" else cell.strip()
    return row


def _read_number(cell: str) -> object:
    try:
        return float(cell)
    except ValueError:
        return cell  # the checker says what is wrong with it


def _mend(layout: Layout) -> str:
    if layout.delimiter == ",":
        mend = "put a text with commas in quotes"
    else:
        mend = f"take the {'tab' if layout.delimiter == chr(9) else layout.delimiter} out of the text"
    return (
        mend if layout.names else f"{mend}, or name the columns in a first line, such as audio|speaker|text"
    )
