"""The column names of tables and datasets, with the manifest field of each, and the suffixes of audio files."""

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from higgs_trainer.errors import UserError, suggest_name

FIELD_OF_COLUMN = {
    "audio": "audio",
    "audio_file": "audio",
    "audio_filepath": "audio",
    "audio_path": "audio",
    "file_name": "audio",
    "path": "audio",
    "wav": "audio",
    "text": "text",
    "sentence": "text",
    "transcript": "text",
    "transcription": "text",
    "speaker": "speaker",
    "speaker_id": "speaker",
    "language": "language",
    "locale": "language",
    "scene": "scene",
    "task": "task",
    "ref_audio": "ref_audio",
    "ref_text": "ref_text",
    "reward": "reward",
}

AUDIO_SUFFIXES = frozenset(
    {".wav", ".flac", ".mp3", ".ogg", ".opus", ".oga", ".aif", ".aiff", ".au", ".caf", ".w64", ".m4a"}
)


Columns = Mapping[str, str]
"""The column of each manifest field that the user named: ``{"audio": "filename", "text": "words"}``."""

NO_COLUMNS: Columns = {}
BETWEEN_PARTS = re.compile(r",(?=\s*\w+\s*=)")


def parse_columns(given: Sequence[str]) -> dict[str, str]:
    """Parse texts such as ``audio=filename,text=words``.

    Raises:
        UserError: a text has another form, or names a field that is unknown or given twice.
    """
    known = list(dict.fromkeys(FIELD_OF_COLUMN.values()))
    chosen: dict[str, str] = {}
    for part in (part for text in given for part in BETWEEN_PARTS.split(text)):
        field, equals, column = (piece.strip() for piece in part.partition("="))
        if not (field and equals and column):
            raise UserError(f"--columns {part}: write FIELD=COLUMN, such as audio=filename,text=words")
        if field not in known:
            raise UserError(f'--columns: "{field}" is no field of a row. {suggest_name(field, known)}')
        if field in chosen:
            raise UserError(f'--columns: "{field}" is given twice. Keep one of them.')
        chosen[field] = column
    return chosen


def check_chosen(place: str, names: Sequence[str], chosen: Columns) -> None:
    """Raise UserError if a column that the user named does not exist."""
    plain = [_plain(name) for name in names]
    for column in chosen.values():
        if _plain(column) not in plain:
            raise UserError(
                f'{place}: there is no column "{column}", which --columns names. {suggest_name(column, list(names))}'
            )


def match_columns(names: Sequence[str], chosen: Columns = NO_COLUMNS) -> list[str | None]:
    """Return the manifest field of each column, or None for an unknown column.

    Args:
        chosen: columns that the user named. Of their fields, no other column counts.
    """
    field_of = {_plain(column): field for field, column in chosen.items()}
    return [
        field_of.get(name, None if (field := FIELD_OF_COLUMN.get(name)) in chosen else field)
        for name in map(_plain, names)
    ]


def _plain(name: str) -> str:
    return name.strip().lower()


def is_readable(fields: Sequence[str | None]) -> bool:
    """Return whether the columns include a recording and its text."""
    return "audio" in fields and "text" in fields


def find_same_columns(names: Sequence[str], fields: Sequence[str | None]) -> Iterator[tuple[str, list[str]]]:
    """Yield each field that several columns map to, with these columns."""
    for field in dict.fromkeys(filter(None, fields)):
        same = [name for name, found in zip(names, fields, strict=True) if found == field]
        if len(same) > 1:
            yield field, same


def name_fields(
    row: Mapping[str, Any], chosen: Columns = NO_COLUMNS
) -> tuple[dict[str, Any], list[str], str | None]:
    """Return the values of an object by manifest field, its unknown keys, and the problem if keys map to one field."""
    names = list(row)
    fields = match_columns(names, chosen)
    named = {field: row[name] for name, field in zip(names, fields, strict=True) if field}
    unknown = [name for name, field in zip(names, fields, strict=True) if not field]
    problem = None
    if len(named) + len(unknown) < len(names):
        field, same = next(find_same_columns(names, fields))
        problem = f'the keys {" and ".join(same)} both mean "{field}"'
    return named, unknown, problem


def check_columns(place: str, names: Sequence[str], fields: Sequence[str | None]) -> None:
    """Check that no two columns map to one field.

    Raises:
        UserError: two columns do, so that the choice would be a guess.
    """
    for field, same in find_same_columns(names, fields):
        raise UserError(
            f'{place}: the columns {" and ".join(same)} both mean "{field}". Rename or drop one of them.'
        )


def guess_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Guess which columns are the recording and its text, from their values, as a suggestion to the user.

    Returns:
        the column of ``audio`` and of ``text``; a field is left out if no column looks like it.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    fields = dict(zip(names, match_columns(names), strict=True))
    guessed = {field: name for name, field in fields.items() if field in ("audio", "text")}
    unknown = [name for name in names if fields[name] is None]
    audio_shares = {name: _share(rows, name, _names_audio) for name in unknown}
    if "audio" not in guessed and audio_shares and max(audio_shares.values()) > 0.5:
        guessed["audio"] = max(audio_shares, key=lambda name: audio_shares[name])
    lengths = {name: _share(rows, name, _measure_text) for name in unknown if audio_shares[name] < 0.5}
    if "text" not in guessed and lengths and max(lengths.values()) > 0:
        guessed["text"] = max(lengths, key=lambda name: lengths[name])
    return guessed


def _share(rows: Sequence[Mapping[str, Any]], name: str, measure: Callable[[str], float]) -> float:
    """Return the mean of a measure over the values of a column. Values that are no text count as 0."""
    values = (row.get(name) for row in rows)
    return sum(measure(value) for value in values if isinstance(value, str)) / max(1, len(rows))


def _names_audio(value: str) -> float:
    return float(PurePath(value.strip()).suffix.lower() in AUDIO_SUFFIXES)


def _measure_text(value: str) -> float:
    return float(sum(character.isalpha() for character in value))


def suggest_columns(rows: Sequence[Mapping[str, Any]]) -> str:
    """Build the remedy for columns with other names: the option with the columns that look right, or an example."""
    guessed = {"audio": "COLUMN", "text": "COLUMN"} | guess_columns(rows)
    own = {field: name for field, name in guessed.items() if FIELD_OF_COLUMN.get(_plain(name)) != field}
    known = {field: [name for name, found in FIELD_OF_COLUMN.items() if found == field] for field in own}
    listed = "; ".join(f"for {field}, {', '.join(names)}" for field, names in known.items())
    option = ",".join(f"{field}={name}" for field, name in own.items())
    return f"Name the columns: --columns {shlex.quote(option)}. Without it, these are known: {listed}."
