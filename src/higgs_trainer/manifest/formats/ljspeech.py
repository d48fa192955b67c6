"""LJSpeech: `metadata.csv` with `id|text|normalised text` on each line, and the recordings in `wavs/` next to it.

If there are three columns, the last one is used: the words as they are spoken.
"""

from collections.abc import Iterator
from pathlib import Path

from higgs_trainer.errors import Problem
from higgs_trainer.manifest.formats.columns import AUDIO_SUFFIXES, is_readable, match_columns
from higgs_trainer.manifest.formats.json_lines import first_line
from higgs_trainer.manifest.formats.source import DataSource, RawRow, build_bad_row
from higgs_trainer.manifest.formats.table import read_cells

METADATA_NAME = "metadata.csv"
RECORDINGS_FOLDER = "wavs"


def matches(path: Path) -> bool:
    """Match a metadata file, or its folder, next to `wavs/`, whose lines begin with the id of a recording."""
    metadata = path / METADATA_NAME if path.is_dir() else path
    if not metadata.is_file() or not (metadata.parent / RECORDINGS_FOLDER).is_dir():
        return False
    cells = first_line(metadata).split("|")
    if len(cells) not in (2, 3) or is_readable(match_columns(cells)):
        return False
    return "/" not in cells[0] and not (metadata.parent / cells[0]).exists()


def read_rows(source: DataSource) -> Iterator[RawRow]:
    """Yield one row per line."""
    metadata = source.path / METADATA_NAME if source.path.is_dir() else source.path
    for line, cells in read_cells(metadata, "|"):
        if isinstance(cells, Problem):
            yield RawRow(metadata, line, line, None, (cells,))
        elif len(cells) not in (2, 3):
            what = f"the line has {len(cells)} columns, not id|text or id|text|normalised text"
            yield build_bad_row(metadata, line, line, what, "Remove the | from the text.")
        else:
            if len(cells) == 3:
                source.unused["text before it was normalised"] += 1
            yield RawRow(metadata, line, line, {"audio": _build_path(cells[0].strip()), "text": cells[-1]})


def _build_path(recording_id: str) -> str:
    has_suffix = Path(recording_id).suffix.lower() in AUDIO_SUFFIXES
    return f"{RECORDINGS_FOLDER}/{recording_id}" + ("" if has_suffix else ".wav")
