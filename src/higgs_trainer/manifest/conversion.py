"""Convert data in any known format to a manifest in JSON lines."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from higgs_trainer.errors import ManifestError, Problem, UserError
from higgs_trainer.files import write_json_lines
from higgs_trainer.manifest.formats import DataSource, open_source
from higgs_trainer.manifest.formats.columns import NO_COLUMNS, Columns
from higgs_trainer.manifest.row_checker import CLIP_LIST_FIELDS, RowRules
from higgs_trainer.manifest.rows import check_rows

AUDIO_FIELDS = ("audio", "ref_audio")


@dataclass(frozen=True)
class Conversion:
    """The result of `convert_manifest`. ``unused`` counts the fields of the source that no manifest field matches."""

    output: Path
    format_name: str
    rows: int
    unused: Counter[str]


def convert_manifest(path: str | Path, output: str | Path, *, columns: Columns = NO_COLUMNS) -> Conversion:
    """Write the rows at ``path`` as a manifest, with paths relative to the folder of ``output``.

    Recordings stay where they are. Recordings that are not files yet are written into a folder next to ``output``. Rows
    are checked as in `prepare`, but their recordings may be anywhere, and their texts are written unchanged.

    Args:
        columns: the columns of a table by manifest field, where they have other names (`open_source`).

    Raises:
        ManifestError: lists all problems; nothing was written.
        UserError: the source cannot be read, or ``output`` exists.
    """
    output = Path(output)
    if output.exists():
        raise UserError(f"{output} already exists. Give another name.")
    source = open_source(path, audio_folder=output.parent / f"{output.stem}-audio", columns=columns)
    num_rows = _check(source)
    write_json_lines(output, _iterate_moved(source, output))
    return Conversion(output, source.format_name, num_rows, source.unused)


def _check(source: DataSource) -> int:
    """Check all rows and return their number.

    Raises:
        ManifestError: lists all problems.
    """
    num_rows = 0
    problems: list[Problem] = []
    for row in check_rows(source, RowRules(allow_outside=True, allow_own_reference=True)):
        num_rows += 1
        problems += row.problems
    if problems:
        raise ManifestError(problems)
    return num_rows


def _iterate_moved(source: DataSource, output: Path) -> Iterator[dict[str, Any]]:
    for row in source:
        assert row.fields is not None, "`_check` has raised for a row without fields"
        yield _move_paths(row.fields, source, output)


def _move_paths(fields: Mapping[str, Any], source: DataSource, output: Path) -> dict[str, Any]:
    """Return the row with the paths of its recordings relative to the folder of ``output``."""
    moved = dict(fields)
    for name in AUDIO_FIELDS:
        if moved.get(name) is not None:
            moved[name] = _build_relative(source.folder / moved[name], output.parent)
    for name in CLIP_LIST_FIELDS:
        if moved.get(name) is not None:
            moved[name] = [_move_paths(clip, source, output) for clip in moved[name]]
    return moved


def _build_relative(path: Path, folder: Path) -> str:
    """Return a path relative to a folder that contains it, and an absolute path otherwise."""
    path, folder = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
