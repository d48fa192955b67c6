"""The fields of a row, and the check of one row. The check collects all problems of the row.

Fields (docs/data_formats.md and docs/tasks.md describe each):

    audio, text, speaker, language, scene, task, reward, seed
    ref_audio, ref_text         the short form of a single reference
    references                  [{audio, text, speaker, language}, ...]: the first is [SPEAKER0], and so on
    turns                       [{audio, text, speaker, language}, ...]: what was said before, oldest first

Paths are relative to the folder of the manifest. Unless `RowRules.allow_outside` is set, they must stay inside it after
links are resolved. Audio is not decoded here: see `corpus/inspection.py`.
"""

import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from higgs_trainer.errors import Problem, shorten, suggest_name
from higgs_trainer.input_files import name_kind, name_reason
from higgs_trainer.limits import (
    FIELDS_IN_ROW,
    GENERATOR_SEEDS,
    LARGEST_REWARD,
    LONGEST_TEXT,
    MOST_CLIPS,
    SMALLEST_REWARD,
)
from higgs_trainer.manifest.audio_paths import find_real_path, is_same_content
from higgs_trainer.manifest.formats import RawRow
from higgs_trainer.manifest.languages import find_code
from higgs_trainer.manifest.numbers import find_language
from higgs_trainer.manifest.tasks import choose_task, derive_task, find_task_problems
from higgs_trainer.manifest.text import (
    LONE_SURROGATE,
    TextRules,
    clean_text,
    find_prompt_problem,
    find_text_problem,
    is_speakable,
)
from higgs_trainer.manifest.utterance import Clip, Utterance, find_conflicting_clip

STRING_FIELDS = ("audio", "text", "speaker", "language", "scene", "task", "ref_audio", "ref_text")
CLIP_LIST_FIELDS = ("references", "turns")
FIELDS = (*STRING_FIELDS, *CLIP_LIST_FIELDS, "reward", "seed")
CLIP_FIELDS = ("audio", "text", "speaker", "language")
PROMPT_FIELDS = ("text", "ref_text", "scene")
HOW_TO_FILL = {"audio": "Add the path of a recording.", "text": "Add the words that are spoken."}


@dataclass(frozen=True)
class RowRules:
    """What rows may contain.

    Attributes:
        audio_required: reject a row without ``audio``.
        allow_outside: accept audio outside the folder of the manifest.
        allow_own_reference: accept a row whose reference or earlier turn is its own recording.
    """

    audio_required: bool = True
    allow_outside: bool = False
    allow_own_reference: bool = False
    text_rules: TextRules = TextRules()


SENTENCES = RowRules(audio_required=False, allow_outside=True, allow_own_reference=True)
"""The rules of `generate` and `evaluate`: nothing is trained on these rows."""


class RowChecker:
    """Check one row and collect all its problems in ``problems``."""

    def __init__(self, row: RawRow, folder: Path, trusted: Set[Path], rules: RowRules) -> None:
        self.row = row
        self.folder = folder
        self.trusted = trusted
        self.rules = rules
        self.problems: list[Problem] = list(row.problems)
        # The keys are an ordered set.
        self.text_changes: dict[str, None] = {}

    def add(self, what: str, what_to_do: str, kind: str = "") -> None:
        self.problems.append(Problem(self.row.file, self.row.line, what, what_to_do, kind))

    def check(self) -> Utterance | None:
        """Return the row as an utterance, or None if it has a problem."""
        fields = self.row.fields
        if fields is None:
            return None
        self._check_names_and_types(fields)
        fields = self._name_languages(fields)
        audio = self._find_audio("audio", fields.get("audio"))
        text = self._read_text("text", fields.get("text"), fields.get("language"))
        in_system = fields.get("task") == "reference_in_system"
        references = self._read_references(fields, text_required=not in_system)
        turns = self._read_clips("turns", fields, text_required=True)
        self._check_own_audio(
            audio, references, "ref_audio" if "ref_audio" in fields else "references[{}].audio"
        )
        self._check_own_audio(audio, turns, "turns[{}].audio")
        self._check_same_words(audio, text, [*references, *turns])
        derived = derive_task(text or "", len(references), len(turns))
        for problem in find_task_problems(fields, derived, text or "", references):
            self.add(*problem)
        if self.problems or text is None:
            return None
        return Utterance(
            utterance_id=f"{audio.stem if audio else 'sentence'}-{self.row.number:05d}",
            audio=audio,
            text=text,
            speaker=fields.get("speaker"),
            language=fields.get("language"),
            scene=fields["scene"].strip() if fields.get("scene") else None,
            references=tuple(references),
            turns=tuple(turns),
            task=choose_task(fields.get("task"), derived),
            reward=None if fields.get("reward") is None else float(fields["reward"]),
            seed=fields.get("seed"),
            text_changes=tuple(self.text_changes),
            file=self.row.file,
            line=self.row.line,
        )

    def _name_languages(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields with codes in place of names of languages: "nl" for "Dutch"."""
        named = dict(fields)
        language = fields.get("language")
        if isinstance(language, str) and language.strip():
            named["language"] = find_code(language)
        for field in CLIP_LIST_FIELDS:
            if isinstance(clips := fields.get(field), list):
                named[field] = [
                    self._name_languages(clip) if isinstance(clip, dict) else clip for clip in clips
                ]
        if named.get("language") != language:
            self.text_changes["language"] = None
        return named

    def _check_names_and_types(self, fields: Mapping[str, Any]) -> None:
        self._check_names("", fields, FIELDS)
        self._check_present("", fields, ("audio", "text") if self.rules.audio_required else ("text",))
        self._check_strings("", fields, STRING_FIELDS)
        reward = fields.get("reward")
        if reward is not None and (isinstance(reward, bool) or not isinstance(reward, int | float)):
            self.add(
                f'"reward" is of type {type(reward).__name__}, not a number', "Write a number without quotes."
            )
        elif reward and not SMALLEST_REWARD <= abs(reward) <= LARGEST_REWARD:
            self.add(
                f'"reward" is {reward:g}, which float32 cannot hold',
                f"Write 0, or a number between {SMALLEST_REWARD:g} and {LARGEST_REWARD:g} in magnitude.",
            )
        seed = fields.get("seed")
        is_whole = isinstance(seed, int) and not isinstance(seed, bool)
        if seed is not None and not (is_whole and seed in GENERATOR_SEEDS):
            self.add(
                f'"seed" is {shorten(repr(seed))}',
                f"Write a whole number from 0 to {GENERATOR_SEEDS[-1]}, without quotes.",
            )

    def _check_names(self, place: str, fields: Mapping[str, Any], known: Sequence[str]) -> None:
        if len(fields) > FIELDS_IN_ROW:
            self.add(
                f"{place or 'the row'} has {len(fields)} fields, more than {FIELDS_IN_ROW}",
                f"Known: {', '.join(known)}.",
            )
            return
        for name in fields:
            if name not in known:
                self.add(f'unknown field "{place}{shorten(name)}"', suggest_name(name, known))

    def _check_present(self, place: str, fields: Mapping[str, Any], required: Sequence[str]) -> None:
        for name in required:
            if fields.get(name) is None:
                self.add(f'"{place}{name}" is missing', HOW_TO_FILL[name])

    def _check_strings(self, place: str, fields: Mapping[str, Any], names: Sequence[str]) -> None:
        """Check that each named field that is present is a usable, non-empty string.

        ``place`` is the prefix of the names in messages.
        """
        for name in names:
            value = fields.get(name)
            if value is None:
                continue
            shown = f'"{place}{name}"'
            if not isinstance(value, str):
                self.add(f"{shown} is of type {type(value).__name__}, not a string", "Put it in quotes.")
            elif not value.strip():
                self.add(f"{shown} is empty", HOW_TO_FILL.get(name, "Fill it in, or leave the field out."))
            elif problem := _find_string_problem(name, value):
                self.add(f"{shown} {problem[0]}", problem[1])

    def _read_text(self, shown: str, value: object, language_name: object) -> str | None:
        """Return a clean transcript, or None if it is absent or has a problem."""
        if not _is_text(value):
            return None
        assert isinstance(value, str)
        if find_prompt_problem(value):
            # `_check_strings` has added the problem.
            return None
        if not is_speakable(value):
            self.add(f'"{shown}" contains no word', "Write what is said, or a tag such as [laugh].")
            return None
        language = None
        if self.rules.text_rules.expand_numbers:
            language = find_language(language_name) if isinstance(language_name, str) else None
            if language is None:
                self._add_no_language(shown, language_name)
                return None
        clean = clean_text(value, self.rules.text_rules, language)
        self.text_changes.update(dict.fromkeys(clean.changes))
        if clean.text != value and not self._check_cleaned(shown, clean.text):
            return None
        return clean.text

    def _check_cleaned(self, shown: str, text: str) -> bool:
        """Check a text again after it was changed: --tags and --expand-numbers can make what was refused before."""
        remedy = "Correct the text, or the table of --tags."
        if problem := find_prompt_problem(text):
            self.add(f'"{shown}" {problem[0]} after it was cleaned', remedy)
            return False
        if not is_speakable(text):
            self.add(f'"{shown}" contains no word after it was cleaned', remedy)
            return False
        return True

    def _add_no_language(self, shown: str, language_name: object) -> None:
        if language_name is None:
            what = f'"{shown}" has no "language", which --expand-numbers needs'
        else:
            what = f'--expand-numbers does not support the language "{language_name}" of "{shown}"'
        self.add(what, 'Write a language that num2words supports, such as "en", or omit --expand-numbers.')

    def _find_audio(self, shown: str, value: object) -> Path | None:
        """Return the file that a field names, or None if it is absent or has a problem."""
        if not _is_text(value):
            return None
        path = os.path.join(self.folder, str(value))
        try:
            kind = name_kind(path)
            real = find_real_path(path)
        except (OSError, RuntimeError, ValueError) as error:
            # A loop of links, a NUL, or a name that is too long. strerror leaves out the path, which may be long.
            self.add(
                f'"{shown}" is not a valid path ({name_reason(error)})', "Write the path of a recording."
            )
            return None
        named = shorten(str(value), 500)
        inside = any(real.startswith(os.path.join(place, "")) for place in (self.folder, *self.trusted))
        if not self.rules.allow_outside and not inside:
            what = f'"{shown}" is outside the folder of the manifest'
            self.add(f"{what}: {named}", "Move the file into the folder, or pass --allow-outside.", what)
            return None
        if kind == "no such file":
            what = f'"{shown}" does not exist'
            self.add(f"{what}: {named}", f"Its path must be relative to {self.folder}.", what)
            return None
        if kind != "a file":
            what = f'"{shown}" is {kind}, not a file'
            self.add(f"{what}: {named}", "Write the path of a recording.", what)
            return None
        return Path(path)

    def _read_references(self, fields: Mapping[str, Any], *, text_required: bool) -> list[Clip]:
        """Read the references, which are given as ``ref_audio`` and ``ref_text`` or as a list."""
        short = {name: fields[name] for name in ("ref_audio", "ref_text") if fields.get(name) is not None}
        if short and fields.get("references") is not None:
            self.add(
                '"references" is given together with "ref_audio" or "ref_text"',
                'Put all references into "references".',
            )
            return []
        if not short:
            return self._read_clips("references", fields, text_required=text_required)
        if "ref_audio" not in short or (text_required and "ref_text" not in short):
            given, other = ("ref_text", "ref_audio") if "ref_text" in short else ("ref_audio", "ref_text")
            self.add(f'"{given}" is given without "{other}"', "A reference needs a recording and its words.")
        audio = self._find_audio("ref_audio", short.get("ref_audio"))
        text = self._read_text("ref_text", short.get("ref_text"), fields.get("language"))
        return [] if audio is None else [Clip(audio, text, fields.get("speaker"))]

    def _read_clips(self, field: str, fields: Mapping[str, Any], *, text_required: bool) -> list[Clip]:
        value, row_language = fields.get(field), fields.get("language")
        if value is None:
            return []
        if not isinstance(value, list) or not value or not all(isinstance(clip, dict) for clip in value):
            self.add(f'"{field}" is not a list of clips', 'Write [{"audio": ..., "text": ...}, ...].')
            return []
        if len(value) > MOST_CLIPS:
            self.add(f'"{field}" has {len(value)} clips, more than {MOST_CLIPS}', "Leave clips out.")
            return []
        clips = [
            self._read_clip(f"{field}[{i}].", clip, row_language, text_required)
            for i, clip in enumerate(value)
        ]
        return [clip for clip in clips if clip is not None]

    def _read_clip(
        self, place: str, fields: Mapping[str, Any], row_language: object, text_required: bool
    ) -> Clip | None:
        self._check_names(place, fields, CLIP_FIELDS)
        self._check_present(place, fields, ("audio", "text") if text_required else ("audio",))
        self._check_strings(place, fields, CLIP_FIELDS)
        audio = self._find_audio(f"{place}audio", fields.get("audio"))
        language = fields.get("language") or row_language
        text = self._read_text(f"{place}text", fields.get("text"), language)
        return None if audio is None else Clip(audio, text, fields.get("speaker"))

    def _check_own_audio(self, audio: Path | None, clips: Sequence[Clip], name: str) -> None:
        if self.rules.allow_own_reference or audio is None:
            return
        for i, clip in enumerate(clips):
            if is_same_content(audio, clip.audio):
                self.add(
                    f'"{name.format(i)}" is the same recording as "audio"',
                    "The model would hear its target in the prompt: give another recording, "
                    "or pass --allow-own-reference.",
                )

    def _check_same_words(self, audio: Path | None, text: str | None, clips: Sequence[Clip]) -> None:
        target = [] if audio is None else [Clip(audio, text)]
        if clips and (index := find_conflicting_clip([*target, *clips])) is not None:
            path = clips[index - len(target)].audio
            what = "occurs twice in the row, with other words"
            self.add(f"{path} {what}", "Correct the wrong transcript.", f"a recording {what}")


def _find_string_problem(name: str, value: str) -> tuple[str, str] | None:
    if name in PROMPT_FIELDS:
        return find_prompt_problem(value)
    if not name.endswith("audio"):
        return find_text_problem(value)
    # A path may contain what a text may not.
    if LONE_SURROGATE.search(value):
        return "contains half of a surrogate pair", "Write the character itself, in UTF-8."
    if len(value) > LONGEST_TEXT:
        return f"has {len(value)} characters, more than {LONGEST_TEXT}", "Write the path of a recording."
    return None


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
