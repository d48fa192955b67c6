"""The audio folder of Hugging Face `datasets`: recordings with a `metadata.csv` or `metadata.jsonl`.

Its column `file_name` names each recording. It is not read through `datasets`, which would need torchcodec.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from higgs_trainer.manifest.formats import table
from higgs_trainer.manifest.formats.columns import name_fields
from higgs_trainer.manifest.formats.json_lines import first_objects, read_objects
from higgs_trainer.manifest.formats.source import DataSource, RawRow, build_bad_row

TABLE_NAME, LINES_NAME = "metadata.csv", "metadata.jsonl"
FILE_COLUMN = "file_name"


def matches(path: Path) -> bool:
    """Match a folder, or its metadata file, that names recordings by `file_name`."""
    if path.is_dir():
        return any(matches(path / name) for name in (TABLE_NAME, LINES_NAME))
    if not path.is_file():
        return False
    if path.name == TABLE_NAME:
        layout = table.find_layout(path)
        return layout is not None and FILE_COLUMN in (layout.names or ())
    return path.name == LINES_NAME and any(FILE_COLUMN in fields for fields in first_objects(path))


def read_rows(source: DataSource) -> Iterator[RawRow]:
    """Yield one row per line of the metadata."""
    metadata = source.path
    if metadata.is_dir():
        metadata = next(metadata / name for name in (TABLE_NAME, LINES_NAME) if matches(metadata / name))
    if metadata.name == TABLE_NAME:
        yield from table.read_rows(replace(source, path=metadata))
        return
    for row in read_objects(metadata):
        if row.fields is None:
            yield row
            continue
        fields, unknown, problem = name_fields(row.fields)
        if problem is not None:
            yield build_bad_row(row.file, row.line, row.number, problem, "Keep one of them.")
            continue
        source.unused.update(unknown)
        yield replace(row, fields=fields)
