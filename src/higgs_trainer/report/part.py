"""A part of the page: a value that was found in the run folder, or one sentence that says why there is none.

A run folder may come from someone else, so only regular files inside it are read, up to a size.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from higgs_trainer.errors import UserError
from higgs_trainer.files import check_inside, read_json_object
from higgs_trainer.shared_paths import hide_paths

T = TypeVar("T")
U = TypeVar("U")

MOST_TEXT_BYTES = 200_000
MOST_LOG_BYTES = 4_000_000_000
MOST_LINE_CHARACTERS = 100_000
MOST_NAMED = 5


@dataclass(frozen=True)
class Part(Generic[T]):
    """A value, or None. ``note`` says why it is missing, or what is wrong with it."""

    value: T | None = None
    note: str = ""

    def then(self, change: Callable[[T], "Part[U]"]) -> "Part[U]":
        """Apply ``change`` to the value. A missing value stays missing, with its note."""
        return Part(None, self.note) if self.value is None else change(self.value)


def hide_folder(note: str, run: Path) -> str:
    """Return a note with its paths relative to the run folder: a page that is shared tells nothing about the machine.

    Args:
        run: the run folder, an absolute path.
    """
    inside = note.replace(f"{run}/", "").replace(f"{run.resolve()}/", "")
    return str(hide_paths(inside.replace(str(run), "the run folder")))


def hide_folder_of(part: Part[T], run: Path) -> Part[T]:
    """Return a part whose note has only paths relative to the run folder."""
    return Part(part.value, hide_folder(part.note, run))


def read_text(run: Path, name: str, *, otherwise: str, most_bytes: int = MOST_TEXT_BYTES) -> Part[str]:
    """Read a text file of a run folder.

    Args:
        name: the path of the file from the run folder.
        otherwise: the end of the note on a missing file: who writes such a file, or what is lost.
    """
    if (note := _check(run, name, otherwise, most_bytes)) is not None:
        return Part(None, note)
    try:
        return Part((run / name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        return Part(None, f"{run / name} cannot be read ({error}).")


def _check(run: Path, name: str, otherwise: str, most_bytes: int) -> str | None:
    """Return the note on a file that cannot be read, or None."""
    path = run / name
    if not path.exists() and not path.is_symlink():
        return f"{path.name} is not in {path.parent}; {otherwise}."
    try:
        check_inside(run, path, most_bytes=most_bytes)
    except UserError as error:
        return f"{error}."
    return None


def read_object(
    run: Path, name: str, *, otherwise: str, most_bytes: int = MOST_TEXT_BYTES
) -> Part[dict[str, Any]]:
    """Read a file that contains one JSON object. The arguments are as for `read_text`."""
    if (note := _check(run, name, otherwise, most_bytes)) is not None:
        return Part(None, note)
    try:
        return Part(read_json_object(run / name))
    except UserError as error:
        return Part(None, f"{error}.")


class JsonLines:
    """The JSON objects of a file, one a line, read one after another.

    Lines that are damaged are skipped; after the iteration, ``note`` counts them and names the first ones.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_lines = 0
        self.num_damaged = 0
        self._number = 0
        self._first_damaged: list[str] = []

    @property
    def note(self) -> str:
        """What is wrong with the file, or an empty text."""
        if not self.num_damaged:
            return ""
        more = self.num_damaged - len(self._first_damaged)
        places = ", ".join(self._first_damaged) + (f" and {more} more" if more else "")
        return (
            f"{self.num_damaged} of {self.num_lines} lines of {self.path} cannot be read and are left out: "
            f"line {places}."
        )

    def skip(self) -> None:
        """Count the line that was read last as damaged."""
        self.num_damaged += 1
        if len(self._first_damaged) < MOST_NAMED:
            self._first_damaged.append(str(self._number))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Read the objects.

        Raises:
            OSError: the disk failed. It names the file.
        """
        for line in self._read_lines():
            self._number += 1
            self.num_lines += 1
            value = _parse_line(line)
            if value is not None:
                yield value
            elif line.strip():
                self.skip()
            else:
                self.num_lines -= 1

    def _read_lines(self) -> Iterator[str]:
        """Read the lines, and the beginning of each that is too long."""
        try:
            with self.path.open(encoding="utf-8", errors="replace") as file:
                while line := file.readline(MOST_LINE_CHARACTERS):
                    yield line
                    while len(line) == MOST_LINE_CHARACTERS and line[-1] != "\n":
                        line = file.readline(MOST_LINE_CHARACTERS)
        except OSError as error:
            # Python names the file if it cannot be opened, but not if it cannot be read to its end.
            error.filename = error.filename or str(self.path)
            raise


def open_lines(run: Path, name: str, *, otherwise: str, most_bytes: int = MOST_LOG_BYTES) -> Part[JsonLines]:
    """Open a file of JSON lines, to be read one by one. The arguments are as for `read_text`."""
    note = _check(run, name, otherwise, most_bytes)
    return Part(JsonLines(run / name)) if note is None else Part(None, note)


def read_lines(
    run: Path, name: str, *, otherwise: str, most_bytes: int = 10 * MOST_TEXT_BYTES
) -> Part[list[dict[str, Any]]]:
    """Read a file with one JSON object a line. Lines that cannot be read are skipped, and counted in the note."""
    return open_lines(run, name, otherwise=otherwise, most_bytes=most_bytes).then(
        lambda lines: Part(list(lines), lines.note)
    )


def _parse_line(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    # Nesting of many thousands of levels raises RecursionError.
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
