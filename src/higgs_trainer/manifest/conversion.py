"""Any format that can be read -> our own manifest, JSON lines."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from higgs_trainer.errors import ManifestError, Problem, UserError
from higgs_trainer.files import write_json_lines
from higgs_trainer.manifest.formats import Source, open_source
from higgs_trainer.manifest.rows import CLIP_LIST_FIELDS, check_rows

AUDIO_FIELDS = ("audio", "ref_audio")


@dataclass(frozen=True)
class Conversion:
    """What was read and written. ``unused`` counts the source's fields that a manifest has no place for."""

    output: Path
    format_name: str
    rows: int
    unused: Counter[str]


def convert_manifest(path: str | Path, output: str | Path) -> Conversion:
    """Write the rows at ``path`` as a manifest in ``output``, whose paths start from the folder of ``output``.

    Recordings stay where they are; those that are no files yet are written into a folder beside ``output``. Rows are
    checked as `prepare` checks them, but may name recordings anywhere, and their texts are written as they stand.

    Raises:
        ManifestError: rows that are wrong, all together; nothing was written.
        UserError: the source cannot be read, or ``output`` is there already.
    """
    output = Path(output)
    if output.exists():
        raise UserError(f"{output} is there already; give another name")
    source = open_source(path, audio_folder=output.parent / f"{output.stem}-audio")
    num_rows = _check(source)
    write_json_lines(output, _iterate_moved(source, output))
    return Conversion(output, source.format_name, num_rows, source.unused)


def _check(source: Source) -> int:
    """The number of rows, all of which are right; ManifestError where any is wrong."""
    num_rows = 0
    problems: list[Problem] = []
    for row in check_rows(source, allow_outside=True, allow_own_reference=True):
        num_rows += 1
        problems += row.problems
    if problems:
        raise ManifestError(problems)
    return num_rows


def _iterate_moved(source: Source, output: Path) -> Iterator[dict[str, Any]]:
    for row in source:
        assert row.fields is not None, "`_check` has raised for a row without fields"
        yield _move_paths(row.fields, source, output)


def _move_paths(fields: Mapping[str, Any], source: Source, output: Path) -> dict[str, Any]:
    """The row with each recording's path as seen from the folder of ``output``."""
    moved = dict(fields)
    for name in AUDIO_FIELDS:
        if moved.get(name) is not None:
            moved[name] = _relate(source.folder / moved[name], output.parent)
    for name in CLIP_LIST_FIELDS:
        if moved.get(name) is not None:
            moved[name] = [_move_paths(clip, source, output) for clip in moved[name]]
    return moved


def _relate(path: Path, folder: Path) -> str:
    """A path from a folder where it lies within, an absolute one elsewhere."""
    path, folder = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
