"""Transcripts: what may be changed in them, what was changed, and what may not stand in them.

Always: Unicode NFC; runs of white space become one space, blank lines go, line breaks stay (a dialogue has them).
Control tags, ``[laugh]`` or ``<SE>...</SE>``, pass as they are, or as `TextRules.tags` maps them. Numbers are spelt out
only where that is asked for, by the rules of the row's own language. Nothing else (docs/texts.md).
"""

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from higgs_trainer.errors import UserError
from higgs_trainer.manifest.numbers import Language, expand_numbers

SPECIAL_TOKEN = re.compile(r"<\|[^<>|]*\|>")
"""What every special token of the model looks like."""

TAG = re.compile(r"(\[[^\[\]\n]*\]|<[^<>\n]*>)")
SPEAKER_TAG = re.compile(r"\[SPEAKER(\d+)\]")


TAGS = re.compile(r"\[[^\]]*\]|<[^>]*>")
UNSPACED = re.compile(  # Thai, Lao, Tibetan, Burmese, Khmer, kana, Chinese characters
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)


WORD = re.compile(r"[^\W_]")


@dataclass(frozen=True)
class TextRules:
    """What else than Unicode and white space may be changed.

    ``expand_numbers``: whole numbers in words. ``tags``: control tags to be written otherwise, such as
    ``{"[laugh]": "<SE>[Laughter]</SE>"}``.
    """

    expand_numbers: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CleanText:
    """A transcript as the model will read it.

    ``changes`` names what was done to it: ``unicode``, ``white space``, ``tags``, ``numbers``; and ``digits left``
    where numbers were to be expanded and some digits could not be read in one way.
    """

    text: str
    changes: tuple[str, ...]


def find_special_tokens(text: str) -> list[str]:
    """The model's special tokens that stand in a text, where they would be read as what they mean."""
    return SPECIAL_TOKEN.findall(text)


def find_speakers(text: str) -> list[int]:
    """The numbers of the ``[SPEAKERn]`` tags, sorted, each once."""
    return sorted({int(number) for number in SPEAKER_TAG.findall(text)})


def clean_text(text: str, rules: TextRules, language: Language | None = None) -> CleanText:
    """A transcript put in order by the rules.

    Raises ValueError where numbers are to be expanded and ``language`` is None: no other language's rules are used.
    """
    steps: dict[str, Callable[[str], str]] = {
        "unicode": lambda words: _outside_tags(words, lambda part: unicodedata.normalize("NFC", part)),
        "white space": _tidy_space,
        "tags": lambda words: TAG.sub(lambda tag: rules.tags.get(tag[0], tag[0]), words),
    }
    if rules.expand_numbers:
        if language is None:
            raise ValueError("numbers cannot be expanded without a language")
        steps["numbers"] = lambda words: _outside_tags(words, lambda part: expand_numbers(part, language))
    changes = []
    for name, step in steps.items():
        changed = step(text)
        if changed != text:
            changes.append(name)
        text = changed
    if rules.expand_numbers and any(map(str.isdigit, TAG.sub("", text))):
        changes.append("digits left")
    return CleanText(text, tuple(changes))


def _outside_tags(text: str, change: Callable[[str], str]) -> str:
    pieces = TAG.split(text)  # what the pattern's group caught stands at the odd places
    return "".join(piece if i % 2 else change(piece) for i, piece in enumerate(pieces))


def _tidy_space(text: str) -> str:
    lines = (
        _outside_tags(line, lambda part: re.sub(r"\s+", " ", part)).strip() for line in text.splitlines()
    )
    return "\n".join(filter(None, lines))


def read_tags(path: Path) -> dict[str, str]:
    """A table of control tags from a JSON file: ``{"[laugh]": "<SE>[Laughter]</SE>", ...}``.

    Raises UserError where it cannot be read, or maps something that is no tag.
    """
    try:
        tags = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a table of tags ({error}); write a JSON object") from error
    if not isinstance(tags, dict):
        raise UserError(f"{path} holds no table of tags; write a JSON object")
    for tag, written in tags.items():
        if not TAG.fullmatch(tag):
            raise UserError(f"{path}: {tag!r} is no tag; tags look like [laugh] or <SE>")
        if not isinstance(written, str) or find_special_tokens(written):
            raise UserError(f"{path}: {tag} becomes {written!r}, which is no text that can be spoken")
    return tags


def count_spoken(text: str) -> tuple[int, str]:
    """How much is said: words or, where a script has no spaces, characters. Control tags are not spoken; each digit of
    a number counts as a word."""
    spoken = TAGS.sub(" ", text)
    characters = len(UNSPACED.findall(spoken))
    words = sum(
        max(1, sum(map(str.isdigit, piece)))
        for piece in UNSPACED.sub(" ", spoken).split()
        if any(map(str.isalnum, piece))
    )
    return (characters + words, "characters") if characters > words else (characters + words, "words")


def holds_words(text: str) -> bool:
    """Whether anything is spoken: `count_spoken` for whoever need not know how much."""
    return WORD.search(TAGS.sub(" ", text)) is not None
