"""What an importer is given, and what it yields: rows as their source has them, in the fields of our own manifest."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from higgs_trainer.errors import Problem


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row that nobody has checked. ``fields`` is None where it could not be read: then ``problems`` say why.

    ``file`` and ``line`` are for messages, ``number`` is the row's place among all rows and makes ids unique; in a
    file of one row a line it is the line.
    """

    file: Path
    line: int
    number: int
    fields: dict[str, Any] | None
    problems: tuple[Problem, ...] = ()


def describe_problem(file: Path, line: int, number: int, what: str, what_to_do: str) -> RawRow:
    """A row that cannot be read."""
    return RawRow(file, line, number, None, (Problem(file, line, what, what_to_do),))


@dataclass
class Source:
    """A file, a folder or a dataset's name, in a known format. Iterating reads it, row by row.

    ``audio_folder`` is where recordings are written that are not files yet. ``unused`` counts, after reading, what the
    source says and our manifest has no place for. ``trusted`` are folders of recordings that no row named by itself:
    they may lie outside ``folder``. Links are resolved in them.
    """

    path: Path
    format_name: str
    read_rows: Callable[["Source"], Iterator[RawRow]]
    audio_folder: Path
    unused: Counter[str] = field(default_factory=Counter)
    trusted: set[Path] = field(default_factory=set)

    @property
    def folder(self) -> Path:
        """Where the paths in the rows start from."""
        return self.path if self.path.is_dir() else self.path.parent

    def __iter__(self) -> Iterator[RawRow]:
        self.unused.clear()
        return self.read_rows(self)
