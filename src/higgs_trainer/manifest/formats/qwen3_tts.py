"""Qwen3-TTS: JSON lines of `audio`, `text` and `ref_audio`, as its fine-tuning reads them.

Its references have no transcript, and zero-shot cloning needs one. The words are taken from the row whose recording the
reference is or, without one, from a text file beside the reference (`ref.txt` beside `ref.wav`).
"""

import os
from collections.abc import Iterator
from pathlib import Path

from higgs_trainer.errors import Problem
from higgs_trainer.manifest.formats.json_lines import first_objects, read_objects
from higgs_trainer.manifest.formats.source import RawRow, Source, describe_problem
from higgs_trainer.manifest.formats.text_folder import is_file, read_text

OURS = ("ref_text", "references", "turns", "task")
KNOWN = ("audio", "text", "ref_audio", "ref_text", "speaker", "language", "scene", "reward")


def matches(path: Path) -> bool:
    """JSON lines with references, none of which comes with its words or any other field of ours alone."""
    rows = first_objects(path) if path.is_file() else []
    has_reference = any("ref_audio" in fields for fields in rows)
    return has_reference and not any(field in fields for fields in rows for field in OURS)


def read_rows(source: Source) -> Iterator[RawRow]:
    """A row a line, with the words of its reference."""
    words = _find_words(source.path)
    for row in read_objects(source.path):
        if row.fields is None:
            yield row
            continue
        source.unused.update(key for key in row.fields if key not in KNOWN)
        fields = {key: value for key, value in row.fields.items() if key in KNOWN}
        reference = fields.get("ref_audio")
        if isinstance(reference, str) and fields.get("ref_text") is None:
            text = words.get(os.path.normpath(reference)) or _read_beside(source.folder / reference)
            if text is None:
                what = f"'ref_audio' without 'ref_text': nobody says what is said in {reference}"
                mend = f"write its words to {Path(reference).stem}.txt beside it"
                yield describe_problem(row.file, row.line, row.number, what, mend)
                continue
            fields["ref_text"] = text
        yield RawRow(row.file, row.line, row.number, fields)


def _find_words(path: Path) -> dict[str, str]:
    """The texts of those rows whose recordings are references."""
    references = {
        os.path.normpath(row.fields["ref_audio"])
        for row in read_objects(path)
        if row.fields and isinstance(row.fields.get("ref_audio"), str)
    }
    words: dict[str, str] = {}
    for row in read_objects(path):
        audio, text = (row.fields or {}).get("audio"), (row.fields or {}).get("text")
        if isinstance(audio, str) and isinstance(text, str) and os.path.normpath(audio) in references:
            words[os.path.normpath(audio)] = text
    return words


def _read_beside(reference: Path) -> str | None:
    path = reference.parent / f"{reference.stem}.txt"
    text = read_text(path) if is_file(path) else None
    return None if isinstance(text, Problem) else text
