"""The names that tables and datasets give to what our manifest knows, and the endings of audio files."""

from collections.abc import Sequence

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
    """The manifest's field of each column, None where it has no place for one."""
    return [FIELD_OF_COLUMN.get(name.strip().lower()) for name in names]


def is_readable(fields: Sequence[str | None]) -> bool:
    """Whether columns say where the recording is and what it says."""
    return "audio" in fields and "text" in fields


def check_columns(place: str, names: Sequence[str], fields: Sequence[str | None]) -> None:
    """Raise UserError where two columns would be one field: which of them is meant would be a guess."""
    for field in filter(None, fields):
        same = [name for name, its_field in zip(names, fields, strict=True) if its_field == field]
        if len(same) > 1:
            raise UserError(
                f"{place}: columns {' and '.join(same)} would both be {field!r}; rename or drop one"
            )
