"""Manifest rows: one utterance each, whatever format they came in. Everything wrong is found in one pass.

Fields (`audio` and `text` are required; docs/data_formats.md and docs/tasks.md say what each is for):

    audio, text, speaker, language, scene, task, reward
    ref_audio, ref_text         one reference, the short way
    references                  [{audio, text, speaker, language}, ...]: the first is [SPEAKER0], and so on
    turns                       [{audio, text, speaker, language}, ...]: what was said before, oldest first

Paths are relative to the manifest's folder and, unless allowed, stay inside it, links resolved.
What this module does not look at is the sound itself: `inspection.py` has the files decoded.
"""

import filecmp
import functools
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from higgs_trainer.audio.files import name_kind
from higgs_trainer.errors import ManifestError, Problem, name_the_near_one
from higgs_trainer.manifest.formats import RawRow, Source, open_source
from higgs_trainer.manifest.numbers import find_language
from higgs_trainer.manifest.tasks import choose_task, derive_task, find_task_problems
from higgs_trainer.manifest.text import TAGS, TextRules, clean_text, find_special_tokens, holds_words
from higgs_trainer.manifest.utterance import Clip, Utterance

REQUIRED_FIELDS = ("audio", "text")
STRING_FIELDS = (*REQUIRED_FIELDS, "speaker", "language", "scene", "task", "ref_audio", "ref_text")
CLIP_LIST_FIELDS = ("references", "turns")
FIELDS = (*STRING_FIELDS, *CLIP_LIST_FIELDS, "reward")
CLIP_FIELDS = ("audio", "text", "speaker", "language")

LONGEST_STRING = 20_000  # characters; a quarter of an hour of fast speech
HALF_PAIR = re.compile("[\ud800-\udfff]")
# Control characters, and the mark of a wrong decoding.
NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd]")


@dataclass(frozen=True, slots=True)
class CheckedRow:
    """A row after it was checked: an utterance, or everything that is wrong with it."""

    utterance: Utterance | None
    problems: tuple[Problem, ...]


def read_manifest(
    path: str | Path,
    *,
    allow_outside: bool = False,
    allow_own_reference: bool = False,
    text_rules: TextRules = TextRules(),
) -> list[Utterance]:
    """Read and check every row.

    Args:
        allow_outside: accept audio outside the manifest's folder.
        allow_own_reference: accept a row whose reference or earlier turn is its own recording.

    Raises:
        ManifestError: all problems of all rows, each with its line.
        UserError: the manifest cannot be read.
    """
    rows = list(
        check_rows(
            open_source(path),
            allow_outside=allow_outside,
            allow_own_reference=allow_own_reference,
            text_rules=text_rules,
        )
    )
    if problems := [problem for row in rows for problem in row.problems]:
        raise ManifestError(problems)
    return [row.utterance for row in rows if row.utterance is not None]


def check_rows(
    source: Source,
    *,
    allow_outside: bool = False,
    allow_own_reference: bool = False,
    text_rules: TextRules = TextRules(),
) -> Iterator[CheckedRow]:
    """Read and check row after row; nothing is kept. UserError where the file cannot be read."""
    folder = source.folder.resolve()
    is_empty = True
    for row in source:
        is_empty = False
        checker = _RowChecker(row, folder, source.trusted, allow_outside, allow_own_reference, text_rules)
        utterance = checker.check()
        yield CheckedRow(utterance, tuple(checker.problems))
    if is_empty:
        problem = Problem(source.path, 0, "it holds no rows", "write one JSON object a line")
        yield CheckedRow(None, (problem,))


class _RowChecker:
    """Checks one row and collects all that is wrong with it."""

    def __init__(
        self,
        row: RawRow,
        folder: Path,
        trusted: Set[Path],
        allow_outside: bool,
        allow_own_reference: bool,
        text_rules: TextRules,
    ) -> None:
        self.row = row
        self.folder = folder
        self.trusted = trusted
        self.allow_outside = allow_outside
        self.allow_own_reference = allow_own_reference
        self.text_rules = text_rules
        self.problems: list[Problem] = list(row.problems)
        self.text_changes: dict[str, None] = {}  # an ordered set

    def add(self, what: str, what_to_do: str) -> None:
        self.problems.append(Problem(self.row.file, self.row.line, what, what_to_do))

    def check(self) -> Utterance | None:
        """The row as an utterance, or None when anything is wrong with it."""
        fields = self.row.fields
        if fields is None:
            return None
        self._check_names_and_types(fields)
        audio = self._find_audio("audio", fields.get("audio"))
        text = self._read_text("text", fields.get("text"), fields.get("language"))
        in_system = fields.get("task") == "reference_in_system"
        references = self._read_references(fields, text_needed=not in_system)
        turns = self._read_clips("turns", fields.get("turns"), text_needed=True)
        self._check_own_audio(
            audio, references, "ref_audio" if "ref_audio" in fields else "references[{}].audio"
        )
        self._check_own_audio(audio, turns, "turns[{}].audio")
        derived = derive_task(text or "", len(references), len(turns))
        for problem in find_task_problems(fields, derived, text or "", references):
            self.add(*problem)
        if self.problems or audio is None or text is None:
            return None
        return Utterance(
            utterance_id=f"{audio.stem}-{self.row.number:05d}",
            audio=audio,
            text=text,
            speaker=fields.get("speaker"),
            language=fields.get("language"),
            scene=fields["scene"].strip() if fields.get("scene") else None,
            references=tuple(references),
            turns=tuple(turns),
            task=choose_task(fields.get("task"), derived),
            reward=None if fields.get("reward") is None else float(fields["reward"]),
            text_changes=tuple(self.text_changes),
            file=self.row.file,
            line=self.row.line,
        )

    def _check_names_and_types(self, fields: Mapping[str, Any]) -> None:
        for key in fields:
            if key not in FIELDS:
                self.add(f"unknown field {key!r}", name_the_near_one(key, FIELDS))
        for field in REQUIRED_FIELDS:
            if fields.get(field) is None:
                self.add(f"no {field!r}", f"give the row its {field}")
        self._check_strings("", fields, STRING_FIELDS)
        reward = fields.get("reward")
        if reward is not None and (isinstance(reward, bool) or not isinstance(reward, int | float)):
            self.add(f"'reward' is a {type(reward).__name__}, not a number", "write a number without quotes")
        elif reward is not None and not math.isfinite(reward):
            self.add(f"'reward' is {reward}", "give a finite number")

    def _check_strings(self, place: str, fields: Mapping[str, Any], names: Sequence[str]) -> None:
        """Each named field that is there is a string with something in it. ``place`` leads its name in messages."""
        for name in names:
            value = fields.get(name)
            if value is None:
                continue
            shown = repr(place + name)
            if not isinstance(value, str):
                self.add(f"{shown} is a {type(value).__name__}, not a string", "put it in quotes")
            elif not value.strip():
                needed = name in REQUIRED_FIELDS
                self.add(f"{shown} is empty", "fill it in" if needed else "leave the field out")
            elif HALF_PAIR.search(value):
                self.add(f"{shown} holds half of a surrogate pair", "write the character itself, in UTF-8")
            elif len(value) > LONGEST_STRING:
                self.add(f"{shown} has {len(value)} characters", f"split it: {LONGEST_STRING} are allowed")
            elif not name.endswith("audio") and (broken := NO_TEXT.search(value)):
                self.add(
                    f"{shown} holds the character U+{ord(broken[0]):04X}, which no text has",
                    "it was decoded wrongly, or comes from a damaged file: write it again",
                )
            elif name == "scene" and (tokens := find_special_tokens(value)):
                self.add(f"{shown} holds the special token {tokens[0]!r}", "take it out of the description")

    def _read_text(self, shown: str, value: object, language_name: object) -> str | None:
        """A transcript, put in order; None where `_check_strings` has complained or there is none."""
        if not _is_text(value):
            return None
        assert isinstance(value, str)
        if tokens := find_special_tokens(value):
            self.add(f"{shown!r} holds the special token {tokens[0]!r}", "take it out of the transcript")
            return None
        if len(value) > LONGEST_STRING or HALF_PAIR.search(value) or NO_TEXT.search(value):
            return None
        if not holds_words(value) and not TAGS.search(value):
            self.add(f"{shown!r} holds no word", "write what is said, or a tag such as [laugh]")
            return None
        language = None
        if self.text_rules.expand_numbers:
            language = find_language(language_name) if isinstance(language_name, str) else None
            if language is None:
                what = "has no 'language'" if language_name is None else f"is in {language_name!r}"
                mend = "whose numbers cannot be expanded: name one that num2words knows, such as 'en'"
                self.add(f"{shown!r} {what}", f"{mend}, or leave --expand-numbers out")
                return None
        clean = clean_text(value, self.text_rules, language)
        self.text_changes.update(dict.fromkeys(clean.changes))
        return clean.text

    def _find_audio(self, shown: str, value: object) -> Path | None:
        """The file that a field names, or None and a problem."""
        if not _is_text(value):
            return None
        path = os.path.join(self.folder, str(value))
        try:
            kind = name_kind(path)
            real = find_real_path(path)
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL, a name too long
            reason = (
                error.strerror if isinstance(error, OSError) else error
            )  # without the path, which may be long
            self.add(f"{shown!r} is no path ({reason})", "give the path of a file")
            return None
        inside = any(real.startswith(os.path.join(place, "")) for place in (self.folder, *self.trusted))
        if not self.allow_outside and not inside:
            self.add(
                f"{shown!r} leaves the manifest's folder: {value}",
                "move the file there, or pass --allow-outside",
            )
            return None
        if kind == "no such file":
            self.add(f"{shown!r} is missing: {value}", f"no such file under {self.folder}")
            return None
        if kind != "a file":
            self.add(f"{shown!r} is {kind}: {value}", "give the path of a file")
            return None
        return Path(path)

    def _read_references(self, fields: Mapping[str, Any], *, text_needed: bool) -> list[Clip]:
        """The references, whether they are written as `ref_audio` and `ref_text` or as a list."""
        short = {name: fields[name] for name in ("ref_audio", "ref_text") if fields.get(name) is not None}
        if short and fields.get("references") is not None:
            self.add("'references' beside 'ref_audio' or 'ref_text'", "put all of them into 'references'")
            return []
        if not short:
            return self._read_clips("references", fields.get("references"), text_needed=text_needed)
        if "ref_audio" not in short or (text_needed and "ref_text" not in short):
            given, other = (
                ("'ref_text'", "'ref_audio'") if "ref_text" in short else ("'ref_audio'", "'ref_text'")
            )
            self.add(f"{given} without {other}", "a reference is a recording and its words: give both")
        audio = self._find_audio("ref_audio", short.get("ref_audio"))
        text = self._read_text("ref_text", short.get("ref_text"), fields.get("language"))
        return [] if audio is None else [Clip(audio, text, fields.get("speaker"))]

    def _read_clips(self, field: str, value: object, *, text_needed: bool) -> list[Clip]:
        if value is None:
            return []
        if not isinstance(value, list) or not value or not all(isinstance(clip, dict) for clip in value):
            self.add(f"{field!r} is no list of clips", 'write [{"audio": ..., "text": ...}, ...]')
            return []
        clips = [self._read_clip(f"{field}[{i}].", clip, text_needed) for i, clip in enumerate(value)]
        return [clip for clip in clips if clip is not None]

    def _read_clip(self, place: str, fields: Mapping[str, Any], text_needed: bool) -> Clip | None:
        for key in fields:
            if key not in CLIP_FIELDS:
                self.add(f"unknown field {place + key!r}", name_the_near_one(key, CLIP_FIELDS))
        for name in REQUIRED_FIELDS if text_needed else ("audio",):
            if fields.get(name) is None:
                self.add(f"no {place + name!r}", f"give the clip its {name}")
        self._check_strings(place, fields, CLIP_FIELDS)
        audio = self._find_audio(f"{place}audio", fields.get("audio"))
        language = fields.get("language") or (self.row.fields or {}).get("language")
        text = self._read_text(f"{place}text", fields.get("text"), language)
        return None if audio is None else Clip(audio, text, fields.get("speaker"))

    def _check_own_audio(self, audio: Path | None, clips: Sequence[Clip], name: str) -> None:
        if self.allow_own_reference or audio is None:
            return
        for i, clip in enumerate(clips):
            if holds_the_same(audio, clip.audio):
                self.add(
                    f"{name.format(i)!r} is the row's own audio",
                    "the target would leak in: give another recording, or pass --allow-own-reference",
                )


def find_real_path(path: str) -> str:
    """The path with all links resolved. Most rows share a few folders, so that theirs are resolved once."""
    if os.path.islink(path):
        return os.path.realpath(path, strict=False)
    return os.path.join(_resolve_folder(os.path.dirname(path)), os.path.basename(path))


@functools.lru_cache(1024)
def _resolve_folder(folder: str) -> str:
    return os.path.realpath(folder)


def holds_the_same(one: Path, other: Path) -> bool:
    """Whether two files are one file, or copies byte for byte."""
    if one.samefile(other):
        return True
    return one.stat().st_size == other.stat().st_size and filecmp.cmp(one, other, shallow=False)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
