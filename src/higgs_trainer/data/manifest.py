"""Manifest rows: JSON lines, one utterance a line. Everything wrong is found in one pass and raised together.

Fields (`audio` and `text` are required): audio, text, speaker, language, scene, ref_audio, ref_text.
Paths are relative to the manifest's folder and, unless allowed, stay inside it, links resolved.
What this module does not look at is the sound itself: `prepare.py` decodes the files.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from higgs_trainer.errors import ManifestError, Problem, UserError, name_the_near_one

Task = Literal["single_speaker", "zero_shot_cloning"]

REQUIRED_FIELDS = ("audio", "text")
OPTIONAL_FIELDS = ("speaker", "language", "scene", "ref_audio", "ref_text")
FIELDS = REQUIRED_FIELDS + OPTIONAL_FIELDS
AUDIO_FIELDS = ("audio", "ref_audio")


@dataclass(frozen=True)
class Utterance:
    """A manifest row. `utterance_id` is the audio file's stem and the row's line: `hello-00017`."""

    utterance_id: str
    audio: Path
    text: str
    speaker: str | None
    language: str | None
    scene: str | None
    ref_audio: Path | None
    ref_text: str | None
    line: int


def derive_task(ref_text: str | None) -> Task:
    """A row with a reference is zero-shot cloning, a row without one single-speaker."""
    return "single_speaker" if ref_text is None else "zero_shot_cloning"


def read_manifest(path: str | Path, *, allow_outside: bool = False) -> list[Utterance]:
    """Read and check every row.

    Args:
        allow_outside: accept audio outside the manifest's folder.

    Raises:
        ManifestError: all problems of all rows, each with its line.
        UserError: the manifest cannot be read.
    """
    utterances, problems = check_manifest(path, allow_outside=allow_outside)
    if problems:
        raise ManifestError(problems)
    return utterances


def check_manifest(path: str | Path, *, allow_outside: bool = False) -> tuple[list[Utterance], list[Problem]]:
    """The rows that are right, and the problems of the others; UserError when the file cannot be read."""
    path = Path(path)
    utterances: list[Utterance] = []
    problems: list[Problem] = []
    for line, text in enumerate(_read_lines(path), start=1):
        if not text.strip():
            continue
        checker = _RowChecker(path, line, allow_outside)
        utterance = checker.check(text)
        problems += checker.problems
        if utterance is not None:
            utterances.append(utterance)
    if not utterances and not problems:
        problems.append(Problem(path, 0, "it holds no rows", "write one JSON object a line"))
    return utterances, problems


def _read_lines(path: Path) -> list[str]:
    """The manifest's lines, without a byte order mark and with Windows line ends understood."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a JSON lines file") from error
    return text.split("\n")  # not splitlines(): U+2028 inside a text ends no row


class _RowChecker:
    """Checks one line and collects all that is wrong with it."""

    def __init__(self, manifest: Path, line: int, allow_outside: bool) -> None:
        self.manifest = manifest
        self.line = line
        self.allow_outside = allow_outside
        self.problems: list[Problem] = []

    def add(self, what: str, what_to_do: str) -> None:
        self.problems.append(Problem(self.manifest, self.line, what, what_to_do))

    def check(self, text: str) -> Utterance | None:
        """The row as an utterance, or None when anything is wrong with it."""
        row = self._parse(text)
        if row is None:
            return None
        self._check_fields(row)
        paths = {
            field: self._find_audio(field, row[field]) for field in AUDIO_FIELDS if _is_text(row.get(field))
        }
        self._check_reference(row, paths)
        if self.problems:
            return None
        audio = paths["audio"]
        assert audio is not None  # a missing one is a problem above
        return Utterance(
            utterance_id=f"{audio.stem}-{self.line:05d}",
            audio=audio,
            text=row["text"].strip(),
            speaker=row.get("speaker"),
            language=row.get("language"),
            scene=row.get("scene"),
            ref_audio=paths.get("ref_audio"),
            ref_text=row["ref_text"].strip() if row.get("ref_text") else None,
            line=self.line,
        )

    def _parse(self, text: str) -> dict[str, Any] | None:
        try:
            row = json.loads(text, object_pairs_hook=self._build_row, parse_constant=self._refuse_constant)
        except (ValueError, RecursionError) as error:
            self.add(f"not JSON ({error})", "write one whole JSON object a line")
            return None
        if not isinstance(row, dict):
            self.add(f"a {type(row).__name__} where an object should be", 'write {"audio": ..., "text": ...}')
            return None
        return row

    def _build_row(self, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        keys = [key for key, _ in pairs]
        for key in row:
            if keys.count(key) > 1:
                self.add(f"{key!r} is given {keys.count(key)} times", "keep one")
        return row

    def _refuse_constant(self, name: str) -> str:
        self.add(f"{name} is not JSON", "leave the field out or write a string")
        return name

    def _check_fields(self, row: dict[str, Any]) -> None:
        for key in row:
            if key not in FIELDS:
                self.add(f"unknown field {key!r}", name_the_near_one(key, FIELDS))
        for field in REQUIRED_FIELDS:
            if row.get(field) is None:
                self.add(f"no {field!r}", f"give the row its {field}")
        for field in FIELDS:
            value = row.get(field)
            if value is None:
                continue
            if not isinstance(value, str):
                self.add(f"{field!r} is a {type(value).__name__}, not a string", "put it in quotes")
            elif not value.strip():
                self.add(
                    f"{field!r} is empty", "fill it in" if field in REQUIRED_FIELDS else "leave the field out"
                )
            elif any("\ud800" <= character <= "\udfff" for character in value):
                self.add(f"{field!r} holds half of a surrogate pair", "write the character itself, in UTF-8")

    def _find_audio(self, field: str, value: str) -> Path | None:
        """The file that a field names, or None and a problem."""
        folder = self.manifest.parent.resolve()
        path = folder / value
        try:
            real, is_file = path.resolve(), path.is_file()
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL, a name too long
            self.add(f"{field!r} is no path ({error})", "give the path of a file")
            return None
        if not self.allow_outside and not real.is_relative_to(folder):
            self.add(
                f"{field!r} leaves the manifest's folder: {value}",
                "move the file there, or pass --allow-outside",
            )
            return None
        if not is_file:
            self.add(f"{field!r} is missing: {value}", f"no such file under {folder}")
            return None
        return path

    def _check_reference(self, row: dict[str, Any], paths: dict[str, Path | None]) -> None:
        given = [field for field in ("ref_audio", "ref_text") if row.get(field) is not None]
        if len(given) == 1:
            other = "ref_text" if given == ["ref_audio"] else "ref_audio"
            self.add(f"{given[0]!r} without {other!r}", "a reference is a recording and its words: give both")
        audio, ref_audio = paths.get("audio"), paths.get("ref_audio")
        if audio and ref_audio and audio.samefile(ref_audio):
            self.add("'ref_audio' is the row's own audio", "the target would leak in: give another recording")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
