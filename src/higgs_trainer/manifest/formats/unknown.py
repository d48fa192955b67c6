"""Explain why data is in no known format: what it is, and how to turn it into rows."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import soundfile

from higgs_trainer.errors import UserError, count_noun, list_first
from higgs_trainer.manifest.formats import json_lines, table
from higgs_trainer.manifest.formats.columns import AUDIO_SUFFIXES, suggest_columns
from higgs_trainer.manifest.formats.text_folder import find_files

ROWS = (
    "Each recording needs its words: a text file of the same name next to it (one.wav, one.txt), or a row of a table "
    "with the columns audio and text"
)
TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"})
LONG_SECONDS = 60.0


def build_unknown_error(path: Path, known: Sequence[str]) -> UserError:
    """Build the error about a file or folder that is in no known format.

    Args:
        known: the names of the known formats.
    """
    if path.is_dir():
        return UserError(_explain_folder(path, known))
    if path.suffix.lower() in AUDIO_SUFFIXES:
        return UserError(_explain_recording(path))
    json_lines.check_first_lines(path)
    names, rows = table.peek(path)
    if names:
        return UserError(
            f"{path} is a table with the columns {list_first(names, 12)}. One must be the path of a recording, and one "
            f"its text. {suggest_columns(rows)}"
        )
    return UserError(f"the format of {path} is unknown. Known formats: {', '.join(known)}.")


def _explain_recording(path: Path) -> str:
    try:
        seconds = soundfile.info(str(path)).duration
    # libsndfile cannot read the file. It is an audio file only by its suffix.
    except soundfile.LibsndfileError:
        seconds = 0.0
    shown = f"{seconds / 60:.1f} minutes" if seconds >= LONG_SECONDS else f"{seconds:.1f} s"
    length = f" ({shown})" if seconds else ""
    what = f"{path} is one recording{length}, but rows are needed: recordings of some seconds, each with its words"
    if seconds >= LONG_SECONDS:
        return (
            f"{what}. Cut it at pauses into sentences, write down what is said in each, and give the folder of the "
            "parts with a text file for each (one.wav, one.txt), or a table with the columns audio and text."
        )
    return f"{what}. Write its words to {path.with_suffix('.txt').name}, and give the folder {path.parent}."


def _explain_folder(folder: Path, known: Sequence[str]) -> str:
    tables = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in TABLE_SUFFIXES)
    if tables:
        return f"{folder} itself is in no known format, but contains {list_first(tables)}. Give the path of that file."
    recordings = list(find_files(folder, AUDIO_SUFFIXES))
    if not recordings:
        return f"{folder} contains no recordings. Known formats: {', '.join(known)}."
    what = f"{folder} has {count_noun(len(recordings), 'recording')}, but no words of any"
    texts = Counter(
        path.suffix
        for path in folder.rglob("*")
        if path.suffix.lower() not in AUDIO_SUFFIXES
        and path.with_suffix("").name in {one.stem for one in recordings}
    )
    if texts:
        suffix, count = texts.most_common(1)[0]
        others = count_noun(count, f"{suffix} file")
        return f"{what} that can be read; the {others} of the same names cannot be. {ROWS}."
    return f"{what}. {ROWS}."
