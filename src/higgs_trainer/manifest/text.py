"""Clean transcripts, and report what was changed.

Always: Unicode NFC; each run of white space becomes one space, and blank lines are removed. Line breaks stay, because a
dialogue has one speaker per line. Control tags such as ``[laugh]`` or ``<SE>...</SE>`` stay, or `TextRules.tags` maps
them. Numbers become words only on request, by the rules of the language of the row. Nothing else is changed
(docs/texts.md).
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from higgs_trainer.errors import Problem, UserError, shorten
from higgs_trainer.input_files import read_text_file
from higgs_trainer.limits import LARGEST_SPEAKER, LONGEST_TEXT, TABLE_OF_TAGS_BYTES
from higgs_trainer.manifest.numbers import Language, expand_numbers
from higgs_trainer.manifest.strict_json import build_decoder

SPECIAL_TOKEN = re.compile(r"<\|[^<>|]*\|>")
"""The form of every special token of the model."""

TAG = re.compile(r"(\[[^\[\]\n]*\]|<[^<>\n]*>)")
"""A control tag on one line. Of all rules, only `TextRules.tags` changes it."""
SPEAKER_TAG = re.compile(r"\[SPEAKER([0-9]{1,4})\]")
ANY_SPEAKER_TAG = re.compile(r"\[\s*SPEAKER[\s_-]*(\d+)\s*\]", re.IGNORECASE)
"""Every spelling of a speaker's tag. The model knows only the first one, without leading zeros."""

TAGS = re.compile(r"\[[^\]]*\]|<[^>]*>")
"""Like `TAG`, but also over several lines and with brackets inside: what does not count as a spoken word."""
# Scripts without spaces: Thai, Lao, Tibetan, Burmese, Khmer, kana, Chinese characters.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)
WORD = re.compile(r"[^\W_]")
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
# Control characters, and the replacement character that a wrong decoding leaves.
NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd]")


@dataclass(frozen=True)
class TextRules:
    """Optional changes to texts.

    Attributes:
        expand_numbers: write whole numbers in words.
        tags: control tags and their replacements, such as ``{"[laugh]": "<SE>[Laughter]</SE>"}``.
    """

    expand_numbers: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CleanText:
    """A transcript as the model reads it.

    ``changes`` lists what was changed: ``unicode``, ``white space``, ``tags``, ``numbers``. ``digits left`` is added if
    numbers were to be expanded and some digits are ambiguous.
    """

    text: str
    changes: tuple[str, ...]


def find_text_problem(text: str) -> tuple[str, str] | None:
    """Find what makes a text unusable: (problem, remedy). The problem continues a sentence that names the text."""
    if LONE_SURROGATE.search(text):
        return "contains half of a surrogate pair", "Write the character itself, in UTF-8."
    if len(text) > LONGEST_TEXT:
        return f"has {len(text)} characters, more than {LONGEST_TEXT}", "Split the recording, or the text."
    found = NOT_TEXT.search(text)
    wrong = _find_unassigned(text) if found is None else found[0]
    if wrong is not None:
        return (
            f"contains U+{ord(wrong):04X}, which is not a character of any text",
            "The text was decoded wrongly, or its file is damaged: write it again.",
        )
    return None


def find_prompt_problem(text: str) -> tuple[str, str] | None:
    """Find what makes a text unusable as a part of a prompt: (problem, remedy), as `find_text_problem`.

    Special tokens and tags of speakers that the model does not know are problems too.
    """
    if problem := find_text_problem(text):
        return problem
    if tokens := find_special_tokens(text):
        return (
            f'contains the special token "{shorten(tokens[0])}"',
            "Remove it: the model would not read it as text.",
        )
    for tag in ANY_SPEAKER_TAG.finditer(text):
        if tag[0] != f"[SPEAKER{tag[1]}]" or (tag[1].startswith("0") and tag[1] != "0"):
            what = f'contains "{shorten(tag[0])}", which the model does not know as the tag of a speaker'
            return what, "Write [SPEAKER0], [SPEAKER1] and so on."
        if not SPEAKER_TAG.fullmatch(tag[0]) or int(tag[1]) > LARGEST_SPEAKER:
            what = f'contains "{shorten(tag[0])}"'
            return what, f"Number the speakers from [SPEAKER0] to [SPEAKER{LARGEST_SPEAKER}]."
    return None


def _find_unassigned(text: str) -> str | None:
    """Find a code point that is no character in the Unicode version of this Python."""
    if text.isascii():
        return None
    return next((char for char in set(text) if unicodedata.category(char) == "Cn"), None)


def find_special_tokens(text: str) -> list[str]:
    """Find the model's special tokens in a text, which the tokenizer would not read as text."""
    return SPECIAL_TOKEN.findall(text)


def find_speakers(text: str) -> list[int]:
    """Return the distinct numbers of the ``[SPEAKERn]`` tags, sorted."""
    return sorted({int(number) for number in SPEAKER_TAG.findall(text)})


def clean_text(text: str, rules: TextRules, language: Language | None = None) -> CleanText:
    """Apply the rules to a transcript.

    Raises:
        ValueError: numbers are to be expanded and ``language`` is None. No default language is assumed.
    """
    steps: dict[str, Callable[[str], str]] = {
        "unicode": lambda words: _change_outside_tags(words, lambda part: unicodedata.normalize("NFC", part)),
        "white space": _collapse_spaces,
        "tags": lambda words: TAG.sub(lambda tag: rules.tags.get(tag[0], tag[0]), words),
    }
    if rules.expand_numbers:
        if language is None:
            raise ValueError("numbers cannot be expanded without a language")
        steps["numbers"] = lambda words: _change_outside_tags(
            words, lambda part: expand_numbers(part, language)
        )
    changes = []
    for name, step in steps.items():
        changed = step(text)
        if changed != text:
            changes.append(name)
        text = changed
    if rules.expand_numbers and any(map(str.isdigit, TAG.sub("", text))):
        changes.append("digits left")
    return CleanText(text, tuple(changes))


def _change_outside_tags(text: str, change: Callable[[str], str]) -> str:
    # re.split puts the tags, which the group of the pattern captures, at the odd indices.
    pieces = TAG.split(text)
    return "".join(piece if i % 2 else change(piece) for i, piece in enumerate(pieces))


def _collapse_spaces(text: str) -> str:
    lines = (
        _change_outside_tags(line, lambda part: re.sub(r"\s+", " ", part)).strip()
        for line in text.splitlines()
    )
    return "\n".join(filter(None, lines))


def read_tags(path: Path) -> dict[str, str]:
    """Read a table of control tags from a JSON file: ``{"[laugh]": "<SE>[Laughter]</SE>", ...}``.

    Raises:
        UserError: the file cannot be read, or an entry is not a control tag.
    """
    problems: list[Problem] = []
    text = read_text_file(path, at_most=TABLE_OF_TAGS_BYTES, what_to_do="Write a JSON object.")
    try:
        tags = build_decoder(path, 0, problems).decode(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as a table of tags ({error}). Write a JSON object."
        ) from error
    if problems:
        raise UserError(str(problems[0]))
    if not isinstance(tags, dict):
        raise UserError(f"{path} is not a table of tags. Write a JSON object.")
    for tag, replacement in tags.items():
        if not TAG.fullmatch(tag):
            raise UserError(f'{path}: "{shorten(tag)}" is not a tag. Write it like [laugh] or <SE>.')
        if not isinstance(replacement, str) or find_special_tokens(replacement):
            raise UserError(
                f"{path}: the replacement of {shorten(tag)} is {shorten(repr(replacement))}. "
                "Write a string without special tokens."
            )
    return tags


def normalize_words(text: str) -> str:
    """Return the letters and digits of a text, without tags and case, to compare what is said."""
    return "".join(WORD.findall(TAGS.sub(" ", text))).casefold()


def identify_text(text: str) -> str:
    """Return what all texts with the same words have in common. A text without words is compared as it is."""
    return normalize_words(text) or text


def count_spoken(text: str) -> tuple[int, str]:
    """Count the spoken words or, in a script without spaces, the characters. Return the count and its unit.

    Control tags do not count. Each digit of a number counts as a word.
    """
    spoken = TAGS.sub(" ", text)
    characters = len(UNSPACED.findall(spoken))
    words = sum(
        max(1, sum(map(str.isdigit, piece)))
        for piece in UNSPACED.sub(" ", spoken).split()
        if any(map(str.isalnum, piece))
    )
    return (characters + words, "characters") if characters > words else (characters + words, "words")


def has_words(text: str) -> bool:
    """Return whether `count_spoken` would count anything."""
    return WORD.search(TAGS.sub(" ", text)) is not None


def is_speakable(text: str) -> bool:
    """Return whether there is something to speak: a word, or a tag such as [laugh]."""
    return has_words(text) or TAGS.search(text) is not None
