"""CSV, TSV and tables with the separator `|`, with or without a header line.

Commas and semicolons, which spreadsheet programs of many languages write, are read as CSV, with quotes. Tabs and bars
always separate columns, and quotes belong to the text, as in LJSpeech and Common Voice. Without a header, a table has
two columns: the path of the recording and its text.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from higgs_trainer.errors import Problem
from higgs_trainer.manifest.formats.columns import (
    AUDIO_SUFFIXES,
    NO_COLUMNS,
    Columns,
    check_columns,
    is_readable,
    match_columns,
)
from higgs_trainer.manifest.formats.json_lines import PEEKED_ROWS, first_line, read_lines
from higgs_trainer.manifest.formats.source import DataSource, RawRow, build_bad_row

DELIMITERS = ("|", "\t", ",", ";")
OF_CSV = (",", ";")


@dataclass(frozen=True)
class TableLayout:
    """The delimiter of a table, and the names of its columns if the first line is a header."""

    delimiter: str
    names: tuple[str, ...] | None


def matches(path: Path) -> bool:
    """Match a file whose first line names an audio and a text column, or begins with the name of an audio file."""
    return path.is_file() and find_layout(path) is not None


def find_layout(path: Path, chosen: Columns = NO_COLUMNS) -> TableLayout | None:
    """Find the layout of a table from its first line. Return None if it is not a table that can be read.

    Args:
        chosen: the columns that the user named.
    """
    line = first_line(path)
    if "\0" in line or line.startswith("{"):
        return None
    for delimiter in DELIMITERS:
        names = tuple(name.strip() for name in split_line(line, delimiter))
        if is_readable(match_columns(names, chosen)):
            return TableLayout(delimiter, names)
    for delimiter in DELIMITERS:
        cells = split_line(line, delimiter)
        if len(cells) > 1 and Path(cells[0].strip()).suffix.lower() in AUDIO_SUFFIXES:
            return TableLayout(delimiter, None)
    return None


def peek(path: Path) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """Return the names and the first rows of a table whose columns are unknown. Return no names if it is no table."""
    line = first_line(path)
    delimiter = max(DELIMITERS, key=lambda one: len(split_line(line, one)))
    names = tuple(name.strip() for name in split_line(line, delimiter))
    if len(names) < 2 or not all(names) or "\0" in line:
        return (), []
    cells = [
        found for _, found in islice(read_cells(path, delimiter), 1, PEEKED_ROWS) if isinstance(found, list)
    ]
    return names, [dict(zip(names, row, strict=False)) for row in cells]


def split_line(line: str, delimiter: str) -> list[str]:
    """Split a line that contains a whole row into cells. Return no cells if it is not CSV."""
    if delimiter not in OF_CSV:
        return line.split(delimiter)
    try:
        return next(csv.reader([line], delimiter=delimiter))
    except csv.Error:
        return []


def read_rows(source: DataSource) -> Iterator[RawRow]:
    """Yield the rows. An unknown column is counted as unused; an empty cell is an absent field."""
    layout = find_layout(source.path, source.columns)
    assert layout is not None, "`matches` was true"
    names = layout.names or ("audio", "text")
    fields = match_columns(names, source.columns)
    check_columns(f"{source.path}:1", names, fields)
    is_header = layout.names is not None
    for line, cells in read_cells(source.path, layout.delimiter):
        if isinstance(cells, Problem):
            yield RawRow(source.path, line, line, None, (cells,))
        elif is_header:
            is_header = False
        elif len(cells) != len(names):
            what = f"the line has {len(cells)} columns, not {len(names)}"
            yield build_bad_row(source.path, line, line, what, _build_remedy(layout))
        else:
            source.unused.update(name for name, field in zip(names, fields, strict=True) if not field)
            yield RawRow(source.path, line, line, _name_cells(cells, fields))


def read_cells(path: Path, delimiter: str) -> Iterator[tuple[int, list[str] | Problem]]:
    """Yield the cells of each row that is not blank, with the line on which the row begins."""
    if delimiter in OF_CSV:
        yield from _read_csv(path, delimiter)
        return
    for line, text in read_lines(path):
        if isinstance(text, Problem):
            yield line, text
        elif text.strip():
            yield line, text.split(delimiter)


def _read_csv(path: Path, delimiter: str) -> Iterator[tuple[int, list[str] | Problem]]:
    problems: list[tuple[int, Problem]] = []

    def feed() -> Iterator[str]:
        for line, text in read_lines(path):
            if isinstance(text, Problem):
                problems.append((line, text))
            yield "\n" if isinstance(text, Problem) else text + "\n"

    reader = csv.reader(feed(), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield line, Problem(path, line, f"not CSV ({error})", "Close quotes, and double those in a text.")
        else:
            if any(cell.strip() for cell in cells):
                yield line, cells
    yield from problems


def _name_cells(cells: Sequence[str], fields: Sequence[str | None]) -> dict[str, object]:
    """Return the cells by field, without empty ones. Empty required fields stay, so that the checker reports them."""
    row: dict[str, object] = {}
    for cell, field in zip(cells, fields, strict=True):
        if field and (cell.strip() or field in ("audio", "text")):
            row[field] = _read_number(cell) if field == "reward" else cell.strip()
    return row


def _read_number(cell: str) -> object:
    try:
        return float(cell)
    except ValueError:
        # The checker reports it.
        return cell


def _build_remedy(layout: TableLayout) -> str:
    if layout.delimiter in OF_CSV:
        remedy = f"Put a text with {'commas' if layout.delimiter == ',' else 'semicolons'} in quotes"
    else:
        remedy = f"Remove the {'tab' if layout.delimiter == chr(9) else layout.delimiter} from the text"
    if layout.names:
        return f"{remedy}."
    return f"{remedy}, or name the columns in a header line, such as audio|speaker|text."
