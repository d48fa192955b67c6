"""Our own format: JSON lines in UTF-8, one object a row, its keys the manifest's fields. And how any JSON is read.

JSON is taken strictly: a key given twice, NaN and Infinity are problems of their row, since whatever stood there would
be a guess.
"""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from higgs_trainer.errors import Problem, UserError
from higgs_trainer.manifest.formats.source import RawRow, Source, describe_problem

SUFFIXES = (".jsonl", ".ndjson")
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
BYTES_LOOKED_AT = 4096  # to tell text from anything else
ROWS_LOOKED_AT = 20  # to tell the formats apart


def matches(path: Path) -> bool:
    """A file whose first line begins an object; or, where that tells nothing, one that is named like JSON lines."""
    return path.is_file() and (first_line(path).startswith("{") or path.suffix.lower() in SUFFIXES)


def read_rows(source: Source) -> Iterator[RawRow]:
    """Every line that is not blank, as it stands: a field that is not the manifest's is the checker's to refuse."""
    return read_objects(source.path)


def read_objects(path: Path) -> Iterator[RawRow]:
    """Every line that is not blank, as an object."""
    for line, text in read_lines(path):
        if isinstance(text, Problem):
            yield RawRow(path, line, line, None, (text,))
        elif text.strip():
            yield parse_row(path, line, text)


def read_lines(path: Path) -> Iterator[tuple[int, str | Problem]]:
    """Lines as text, counted from 1, without a byte order mark; a Problem where one is not UTF-8.

    UTF-16 is read too where a byte order mark says so. Lines end with a line feed (and a carriage return before it)
    alone: U+2028 inside a text ends no row.
    """
    try:
        with path.open("rb") as file:
            beginning = file.read(BYTES_LOOKED_AT)
        if beginning[:2] in UTF_16_MARKS:
            yield from _read_utf_16(path)
        elif b"\0" in beginning:
            raise UserError(f"{path} holds NUL bytes, so it is no text in UTF-8; save it as UTF-8")
        else:
            yield from _read_utf_8(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a file or folder of data") from error


def _read_utf_8(path: Path) -> Iterator[tuple[int, str | Problem]]:
    with path.open("rb") as file:
        for line, encoded in enumerate(file, start=1):
            try:
                text = encoded.decode("utf-8-sig" if line == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield line, Problem(path, line, f"not UTF-8 ({error})", "save the file as UTF-8")
            else:
                yield line, text.removesuffix("\n").removesuffix("\r")


def _read_utf_16(path: Path) -> Iterator[tuple[int, str | Problem]]:
    with path.open(encoding="utf-16", newline="\n") as file:
        try:
            for line, text in enumerate(file, start=1):
                yield line, text.removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is neither UTF-8 nor UTF-16 ({error}); save it as UTF-8") from error


def first_line(path: Path) -> str:
    """The first line that is not blank, stripped; empty where there is none in UTF-8 or UTF-16."""
    lines = (text.strip() for _, text in islice(read_lines(path), ROWS_LOOKED_AT) if isinstance(text, str))
    return next(filter(None, lines), "")


def first_objects(path: Path) -> list[dict[str, Any]]:
    """The objects among the first `ROWS_LOOKED_AT` lines, for telling formats apart; no message is made of the rest."""
    return [row.fields for row in islice(read_objects(path), ROWS_LOOKED_AT) if row.fields is not None]


def parse_row(path: Path, line: int, text: str) -> RawRow:
    """One JSON object as a row; a row of problems where it is not one."""
    problems: list[Problem] = []
    try:
        row = build_decoder(path, line, problems).decode(text)
    except (ValueError, RecursionError) as error:
        return describe_problem(path, line, line, f"not JSON ({error})", "write one whole JSON object a line")
    if not isinstance(row, dict):
        what = f"a {type(row).__name__} where an object should be"
        return describe_problem(path, line, line, what, 'write {"audio": ..., "text": ...}')
    return RawRow(path, line, line, None if problems else row, tuple(problems))


def build_decoder(path: Path, line: int, problems: list[Problem]) -> json.JSONDecoder:
    """A decoder that adds to ``problems`` what Python's takes without a word: a key given twice, NaN and Infinity."""

    def add(what: str, what_to_do: str) -> None:
        problems.append(Problem(path, line, what, what_to_do))

    def build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            for key, count in Counter(key for key, _ in pairs).items():
                if count > 1:
                    add(f"{key!r} is given {count} times", "keep one")
        return row

    def refuse_constant(name: str) -> str:
        add(f"{name} is not JSON", "leave the field out or write a string or a number")
        return name

    return json.JSONDecoder(object_pairs_hook=build_object, parse_constant=refuse_constant)
