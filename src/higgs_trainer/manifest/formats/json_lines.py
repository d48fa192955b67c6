"""Our own format: JSON lines in UTF-8, one object per row, whose keys are the fields of the manifest.

This module also has the strict JSON reader of all JSON formats: a duplicate key, NaN and Infinity are problems of their
row, because any reading of them would be a guess.
"""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from higgs_trainer.errors import Problem, UserError
from higgs_trainer.manifest.formats.source import DataSource, RawRow, build_bad_row

SUFFIXES = (".jsonl", ".ndjson")
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# How much is read to distinguish text from binary files, and to detect the format.
PEEKED_BYTES = 4096
PEEKED_ROWS = 20


def matches(path: Path) -> bool:
    """Match a file whose first line begins an object or whose name has a suffix of JSON lines."""
    return path.is_file() and (first_line(path).startswith("{") or path.suffix.lower() in SUFFIXES)


def read_rows(source: DataSource) -> Iterator[RawRow]:
    """Yield every line that is not blank. Unknown fields stay in: the checker rejects them."""
    return read_objects(source.path)


def read_objects(path: Path) -> Iterator[RawRow]:
    """Yield every line that is not blank, parsed as an object."""
    for line, text in read_lines(path):
        if isinstance(text, Problem):
            yield RawRow(path, line, line, None, (text,))
        elif text.strip():
            yield parse_row(path, line, text)


def read_lines(path: Path) -> Iterator[tuple[int, str | Problem]]:
    """Yield lines of text, counted from 1, without a byte order mark. A line that is not UTF-8 is a Problem.

    A file with the byte order mark of UTF-16 is read as UTF-16. Lines end only with a line feed, or a carriage return
    and a line feed: U+2028 inside a text does not end a row.
    """
    try:
        with path.open("rb") as file:
            beginning = file.read(PEEKED_BYTES)
        if beginning[:2] in UTF_16_MARKS:
            yield from _read_utf_16(path)
        elif b"\0" in beginning:
            raise UserError(f"{path} contains NUL bytes, so it is not text in UTF-8. Save it as UTF-8.")
        else:
            yield from _read_utf_8(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}). Give a file or a folder with data."
        ) from error


def _read_utf_8(path: Path) -> Iterator[tuple[int, str | Problem]]:
    with path.open("rb") as file:
        for line, encoded in enumerate(file, start=1):
            try:
                text = encoded.decode("utf-8-sig" if line == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield line, Problem(path, line, f"the line is not UTF-8 ({error})", "Save the file as UTF-8.")
            else:
                yield line, text.removesuffix("\n").removesuffix("\r")


def _read_utf_16(path: Path) -> Iterator[tuple[int, str | Problem]]:
    with path.open(encoding="utf-16", newline="\n") as file:
        try:
            for line, text in enumerate(file, start=1):
                yield line, text.removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is neither UTF-8 nor UTF-16 ({error}). Save it as UTF-8.") from error


def first_line(path: Path) -> str:
    """Return the first line that is not blank, stripped, or an empty string if there is none."""
    lines = (text.strip() for _, text in islice(read_lines(path), PEEKED_ROWS) if isinstance(text, str))
    return next(filter(None, lines), "")


def first_objects(path: Path) -> list[dict[str, Any]]:
    """Return the objects among the first `PEEKED_ROWS` lines, to detect the format. Other lines are ignored."""
    return [row.fields for row in islice(read_objects(path), PEEKED_ROWS) if row.fields is not None]


def parse_row(path: Path, line: int, text: str) -> RawRow:
    """Parse one JSON object into a row. If it is not one, the row has a problem instead of fields."""
    problems: list[Problem] = []
    try:
        row = build_decoder(path, line, problems).decode(text)
    except (ValueError, RecursionError) as error:
        return build_bad_row(
            path, line, line, f"the line is not JSON ({error})", "Write one complete JSON object per line."
        )
    if not isinstance(row, dict):
        what = f"the line is a {type(row).__name__}, not an object"
        return build_bad_row(path, line, line, what, 'Write {"audio": ..., "text": ...}.')
    return RawRow(path, line, line, None if problems else row, tuple(problems))


def build_decoder(path: Path, line: int, problems: list[Problem]) -> json.JSONDecoder:
    """Build a decoder that adds to ``problems`` what Python accepts silently: duplicate keys, NaN and Infinity."""

    def add(what: str, what_to_do: str) -> None:
        problems.append(Problem(path, line, what, what_to_do))

    def build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            for key, count in Counter(key for key, _ in pairs).items():
                if count > 1:
                    add(f'"{key}" is given {count} times', "Keep one.")
        return row

    def reject_constant(name: str) -> str:
        add(f"{name} is not JSON", "Leave the field out, or write a string or a number.")
        return name

    return json.JSONDecoder(object_pairs_hook=build_object, parse_constant=reject_constant)
