"""Other tools' formats -> rows of our own manifest, told apart by content. Each is a file and a row of `FORMATS`.

An importer only says what stands where; whether a row is right is `manifest.py`'s to say, whatever the format was.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from higgs_trainer.data.importers import json_lines
from higgs_trainer.data.importers.raw_row import RawRow
from higgs_trainer.errors import UserError

__all__ = ["FORMATS", "Format", "RawRow", "Source", "detect_format", "open_source"]


@dataclass(frozen=True)
class Format:
    """A format that can be read. ``matches`` looks at the beginning alone; ``read_rows`` streams, and counts in its
    second argument the source's fields that have no place in our manifest."""

    name: str
    matches: Callable[[Path], bool]
    read_rows: Callable[[Path, Counter[str]], Iterator[RawRow]]


FORMATS: tuple[Format, ...] = (Format("JSON lines", json_lines.matches, json_lines.read_rows),)
"""In the order in which they are tried: the first that matches reads."""


@dataclass
class Source:
    """A file or folder of data in a known format. Iterating reads it; ``unused`` then counts what was left behind.

    ``folder`` is where the paths in its rows start from.
    """

    path: Path
    format: Format
    unused: Counter[str] = field(default_factory=Counter)

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    def __iter__(self) -> Iterator[RawRow]:
        self.unused.clear()
        return self.format.read_rows(self.path, self.unused)


def open_source(path: str | Path) -> Source:
    """The data at ``path``, its format found. Raises UserError as `detect_format`."""
    path = Path(path)
    return Source(path, detect_format(path))


def detect_format(path: Path) -> Format:
    """The format of a file or folder; UserError where there is nothing or its content is in no known one."""
    if not path.exists():
        raise UserError(f"{path} cannot be read (No such file or directory); give a file or folder of data")
    for known in FORMATS:
        if known.matches(path):
            return known
    names = ", ".join(known.name for known in FORMATS)
    raise UserError(
        f"{path} is in no format that is known by its content ({names}); see docs/data_formats.md"
    )
