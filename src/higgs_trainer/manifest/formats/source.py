"""The input and the output of an importer: a source, and its rows in the fields of our own manifest."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from higgs_trainer.errors import Problem, UserError
from higgs_trainer.manifest.formats.columns import Columns


@dataclass(frozen=True, slots=True)
class RawRow:
    """An unchecked row.

    Attributes:
        file: with ``line``, the place that messages name.
        number: the position of the row among all rows, which makes ids unique. In a file with one row per line it is
            the line number.
        fields: None if the row could not be read; ``problems`` then says why.
    """

    file: Path
    line: int
    number: int
    fields: dict[str, Any] | None
    problems: tuple[Problem, ...] = ()


def build_bad_row(file: Path, line: int, number: int, what: str, what_to_do: str) -> RawRow:
    """Build a row that cannot be read, with its problem."""
    return RawRow(file, line, number, None, (Problem(file, line, what, what_to_do),))


def raise_unreadable(error: OSError) -> NoReturn:
    """Raise a UserError that names what cannot be read. Without it, its recordings would be left out silently."""
    raise UserError(
        f"{error.filename} cannot be read ({error.strerror}), so a part of the data would be missing. "
        "Give yourself the permission to read it, or move it away."
    ) from error


@dataclass
class DataSource:
    """A file, a folder or the name of a dataset, in a known format. Iteration reads it row by row.

    Attributes:
        audio_folder: where recordings are written that are not files yet.
        columns: the columns of a table that the user named, by manifest field.
        unused: counts, after reading, the fields of the source that no manifest field matches.
        trusted: folders, with links resolved, whose recordings may lie outside ``folder`` because no row named them.
    """

    path: Path
    format_name: str
    read_rows: Callable[["DataSource"], Iterator[RawRow]]
    audio_folder: Path
    columns: Columns = field(default_factory=dict)
    unused: Counter[str] = field(default_factory=Counter)
    trusted: set[Path] = field(default_factory=set)

    @property
    def folder(self) -> Path:
        """The folder that the paths in the rows are relative to."""
        return self.path if self.path.is_dir() else self.path.parent

    def __iter__(self) -> Iterator[RawRow]:
        """Yield the rows.

        Raises:
            UserError: a file or a folder of the source cannot be read.
        """
        self.unused.clear()
        try:
            yield from self.read_rows(self)
        except OSError as error:
            raise_unreadable(error)
