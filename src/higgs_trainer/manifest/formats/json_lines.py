"""Our own format: JSON lines in UTF-8, one object per row, whose keys are the fields of the manifest.

This module also reads the lines of every format that is a text file.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from higgs_trainer.errors import Problem, UserError
from higgs_trainer.input_files import GIVE_TEXT, SAVE_AS_UTF_8, check_is_file, describe_bad_byte
from higgs_trainer.limits import LINE_BYTES
from higgs_trainer.manifest.formats.columns import name_fields
from higgs_trainer.manifest.formats.source import DataSource, RawRow, build_bad_row
from higgs_trainer.manifest.strict_json import build_decoder

SUFFIXES = (".jsonl", ".ndjson")
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# How much is read to distinguish text from binary files, and to detect the format.
PEEKED_BYTES = 4096
PEEKED_ROWS = 20
OWN_FIELDS = ("references", "turns", "seed")
"""Fields of a manifest that no table has."""
GIVE_DATA = "Give a file or a folder with data."


def matches(path: Path) -> bool:
    """Match a file whose first line begins an object or whose name has a suffix of JSON lines."""
    return path.is_file() and (first_line(path).startswith("{") or path.suffix.lower() in SUFFIXES)


def read_rows(source: DataSource) -> Iterator[RawRow]:
    """Yield every line that is not blank. Unknown fields stay in, so that the checker rejects them.

    If the user named columns, the keys are those of another tool: they are read as the columns of a table.
    """
    if not source.columns:
        yield from read_objects(source.path)
        return
    for row in read_objects(source.path):
        if row.fields is None:
            yield row
            continue
        fields, unknown, problem = name_fields(row.fields, source.columns)
        if problem is not None:
            yield build_bad_row(row.file, row.line, row.number, problem, "Keep one of them.")
            continue
        fields |= {name: row.fields[name] for name in unknown if name in OWN_FIELDS}
        source.unused.update(name for name in unknown if name not in OWN_FIELDS)
        yield replace(row, fields=fields)


def read_objects(path: Path) -> Iterator[RawRow]:
    """Yield every line that is not blank, parsed as an object."""
    for line, text in read_lines(path):
        if isinstance(text, Problem):
            yield RawRow(path, line, line, None, (text,))
        elif text.strip():
            yield parse_row(path, line, text)


def read_lines(path: Path) -> Iterator[tuple[int, str | Problem]]:
    """Yield lines of text, counted from 1, without a byte order mark. A line that is not text in UTF-8 is a Problem.

    A file with the byte order mark of UTF-16 is read as UTF-16. Lines end with a line feed, or a carriage return and a
    line feed: U+2028 inside a text does not end a row. Other carriage returns are a Problem of their line.

    Raises:
        UserError: this is not a regular file of text, or a line is longer than any row.
    """
    check_is_file(path, GIVE_DATA)
    try:
        with path.open("rb") as file:
            beginning = file.read(PEEKED_BYTES)
        if beginning[:2] in UTF_16_MARKS:
            yield from _read_utf_16(path)
        elif b"\0" in beginning:
            raise UserError(f"{path} contains NUL bytes, so it is not text in UTF-8. {GIVE_TEXT}")
        else:
            yield from _read_utf_8(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). {GIVE_DATA}") from error


def _read_utf_8(path: Path) -> Iterator[tuple[int, str | Problem]]:
    with path.open("rb") as file:
        for line, encoded in enumerate(iter(lambda: file.readline(LINE_BYTES + 1), b""), start=1):
            if len(encoded) > LINE_BYTES:
                raise _build_too_long(path, line)
            try:
                text = encoded.decode("utf-8-sig" if line == 1 else "utf-8")
            except UnicodeDecodeError as error:
                what = f"the line is not UTF-8 ({describe_bad_byte(error)})"
                kind = "the line is in another encoding than it must be"
                yield line, Problem(path, line, what, SAVE_AS_UTF_8, kind)
            else:
                yield line, _end_line(path, line, text)


def _read_utf_16(path: Path) -> Iterator[tuple[int, str | Problem]]:
    with path.open(encoding="utf-16", newline="\n") as file:
        try:
            for line, text in enumerate(iter(lambda: file.readline(LINE_BYTES + 1), ""), start=1):
                if len(text) > LINE_BYTES:
                    raise _build_too_long(path, line)
                yield line, _end_line(path, line, text)
        except UnicodeError as error:
            raise UserError(f"{path} is neither UTF-8 nor UTF-16 ({error}). Save it as UTF-8.") from error


def _build_too_long(path: Path, line: int) -> UserError:
    what = f"the line is longer than {LINE_BYTES / 2**20:g} MiB, so it is not a row"
    return UserError(str(Problem(path, line, what, "Write one row per line.")))


def _end_line(path: Path, line: int, text: str) -> str | Problem:
    """Remove the end of a line."""
    text = text.removesuffix("\n").removesuffix("\r")
    if "\r" not in text:
        return text
    what = "the line contains a carriage return, which ends lines in files of old Macs"
    return Problem(path, line, what, "Save the file with the line ends of Linux or Windows.")


def first_line(path: Path) -> str:
    """Return the first line that is not blank, stripped, or an empty string if there is none."""
    lines = (text.strip() for _, text in islice(read_lines(path), PEEKED_ROWS) if isinstance(text, str))
    return next(filter(None, lines), "")


def check_first_lines(path: Path) -> None:
    """Raise UserError if one of the first lines is not text, so that the format cannot be detected."""
    for _, text in islice(read_lines(path), PEEKED_ROWS):
        if isinstance(text, Problem):
            raise UserError(str(text))


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
