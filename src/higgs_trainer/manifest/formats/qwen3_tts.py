"""Qwen3-TTS: JSON lines of `audio`, `text` and `ref_audio`, as its fine-tuning reads them.

Its references have no transcript, which zero-shot cloning needs. The words come from the row whose recording is the
reference or, if there is none, from a text file next to the reference (`ref.txt` next to `ref.wav`).
"""

import os
from collections.abc import Iterator
from pathlib import Path

from higgs_trainer.errors import Problem
from higgs_trainer.manifest.formats.json_lines import first_objects, read_objects
from higgs_trainer.manifest.formats.source import DataSource, RawRow, build_bad_row
from higgs_trainer.manifest.formats.text_folder import is_file, read_text

OUR_FIELDS = ("ref_text", "references", "turns", "task")
KNOWN_FIELDS = ("audio", "text", "ref_audio", "ref_text", "speaker", "language", "scene", "reward", "seed")


def matches(path: Path) -> bool:
    """Match JSON lines with references that have no words, and without the fields that only our manifest has."""
    rows = first_objects(path) if path.is_file() else []
    has_reference = any("ref_audio" in fields for fields in rows)
    return has_reference and not any(field in fields for fields in rows for field in OUR_FIELDS)


def read_rows(source: DataSource) -> Iterator[RawRow]:
    """Yield one row per line, with the words of its reference."""
    words = _read_reference_texts(source.path)
    for row in read_objects(source.path):
        if row.fields is None:
            yield row
            continue
        source.unused.update(key for key in row.fields if key not in KNOWN_FIELDS)
        fields = {key: value for key, value in row.fields.items() if key in KNOWN_FIELDS}
        reference = fields.get("ref_audio")
        if isinstance(reference, str) and fields.get("ref_text") is None:
            known = words.get(os.path.normpath(reference), {})
            if len(known) > 1:
                what = f"lines {' and '.join(map(str, list(known.values())[:2]))} have other words for the reference"
                remedy = f"Correct the words of {reference}."
                yield build_bad_row(row.file, row.line, row.number, f"{what} {reference}", remedy)
                continue
            text = next(iter(known), None) or _read_text_next_to(source.folder / reference)
            if text is None:
                what = f'"ref_audio" is given without "ref_text": {reference}'
                remedy = f"Write the words of the reference to {Path(reference).stem}.txt next to it."
                yield build_bad_row(row.file, row.line, row.number, what, remedy)
                continue
            fields["ref_text"] = text
        yield RawRow(row.file, row.line, row.number, fields)


def _read_reference_texts(path: Path) -> dict[str, dict[str, int]]:
    """Return the texts of the rows whose recordings are references, by the path of the recording, with their lines."""
    references = {
        os.path.normpath(row.fields["ref_audio"])
        for row in read_objects(path)
        if row.fields and isinstance(row.fields.get("ref_audio"), str)
    }
    words: dict[str, dict[str, int]] = {}
    for row in read_objects(path):
        audio, text = (row.fields or {}).get("audio"), (row.fields or {}).get("text")
        if isinstance(audio, str) and isinstance(text, str) and os.path.normpath(audio) in references:
            words.setdefault(os.path.normpath(audio), {}).setdefault(text, row.line)
    return words


def _read_text_next_to(reference: Path) -> str | None:
    path = reference.parent / f"{reference.stem}.txt"
    text = read_text(path) if is_file(path) else None
    return None if isinstance(text, Problem) else text
