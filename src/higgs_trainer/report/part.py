"""A part of the page: a value that was found in the run folder, or one sentence that says why there is none."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from higgs_trainer.errors import UserError
from higgs_trainer.files import read_json_object

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Part(Generic[T]):
    """A value, or None. ``note`` says why it is missing, or what is wrong with it."""

    value: T | None = None
    note: str = ""

    def then(self, change: Callable[[T], "Part[U]"]) -> "Part[U]":
        """Apply ``change`` to the value. A missing value stays missing, with its note."""
        return Part(None, self.note) if self.value is None else change(self.value)


def read_text(path: Path, *, otherwise: str) -> Part[str]:
    """Read a text file. ``otherwise`` ends the note on a missing file: who writes such a file, or what is lost."""
    try:
        return Part(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Part(None, _describe_missing(path, otherwise))
    except (OSError, UnicodeDecodeError) as error:
        return Part(None, f"{path} cannot be read ({error}).")


def _describe_missing(path: Path, otherwise: str) -> str:
    return f"{path.name} is not in {path.parent}; {otherwise}."


def read_object(path: Path, *, otherwise: str) -> Part[dict[str, Any]]:
    """Read a file that contains one JSON object. ``otherwise`` is as for `read_text`."""
    if not path.exists():
        return Part(None, _describe_missing(path, otherwise))
    try:
        return Part(read_json_object(path))
    except UserError as error:
        return Part(None, f"{error}.")


def read_lines(path: Path, *, otherwise: str) -> Part[list[dict[str, Any]]]:
    """Read a file with one JSON object a line. Lines that cannot be read are skipped, and counted in the note."""

    def parse(text: str) -> Part[list[dict[str, Any]]]:
        lines = [_parse_line(line) for line in text.splitlines() if line.strip()]
        objects = [line for line in lines if line is not None]
        damaged = len(lines) - len(objects)
        return Part(objects, f"{damaged} of {len(lines)} lines of {path} cannot be read." if damaged else "")

    return read_text(path, otherwise=otherwise).then(parse)


def _parse_line(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
