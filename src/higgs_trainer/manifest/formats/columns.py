"""The column names of tables and datasets, with the manifest field of each, and the suffixes of audio files."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from higgs_trainer.errors import UserError

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


def match_columns(names: Sequence[str]) -> list[str | None]:
    """Return the manifest field of each column, or None for an unknown column."""
    return [FIELD_OF_COLUMN.get(name.strip().lower()) for name in names]


def is_readable(fields: Sequence[str | None]) -> bool:
    """Return whether the columns include a recording and its text."""
    return "audio" in fields and "text" in fields


def find_same_columns(names: Sequence[str], fields: Sequence[str | None]) -> Iterator[tuple[str, list[str]]]:
    """Yield each field that several columns map to, with these columns."""
    for field in dict.fromkeys(filter(None, fields)):
        same = [name for name, found in zip(names, fields, strict=True) if found == field]
        if len(same) > 1:
            yield field, same


def name_fields(row: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], str | None]:
    """Return the values of an object by manifest field, its unknown keys, and the problem if keys map to one field."""
    names = list(row)
    fields = match_columns(names)
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
