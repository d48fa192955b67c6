"""What an importer yields: a row as its source has it, in the fields of our own manifest, and where it stands."""

from dataclasses import dataclass
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
