"""Transcripts: what may be changed in them, what was changed, and what may not stand in them.

Always: Unicode NFC; runs of white space become one space, blank lines go, line breaks stay (a dialogue has them).
Control tags, ``[laugh]`` or ``<SE>...</SE>``, pass as they are, or as `TextRules.tags` maps them. Nothing else.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

SPECIAL_TOKEN = re.compile(r"<\|[^<>|]*\|>")
"""What every special token of the model looks like."""

TAG = re.compile(r"(\[[^\[\]\n]*\]|<[^<>\n]*>)")
SPEAKER_TAG = re.compile(r"\[SPEAKER(\d+)\]")
EDGE_SPACE = re.compile(r"^\s|\s$")


@dataclass(frozen=True)
class TextRules:
    """``tags``: control tags to be written otherwise, such as ``{"[laugh]": "<SE>[Laughter]</SE>"}``."""

    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CleanText:
    """A transcript as the model will read it. ``changes`` names what was done to it: ``unicode``, ``white space``,
    ``tags``."""

    text: str
    changes: tuple[str, ...]


def find_special_tokens(text: str) -> list[str]:
    """The model's special tokens that stand in a text, where they would be read as what they mean."""
    return SPECIAL_TOKEN.findall(text)


def find_speakers(text: str) -> list[int]:
    """The numbers of the ``[SPEAKERn]`` tags, sorted, each once."""
    return sorted({int(number) for number in SPEAKER_TAG.findall(text)})


def clean_text(text: str, rules: TextRules) -> CleanText:
    """A transcript put in order by the rules."""
    steps: dict[str, Callable[[str], str]] = {
        "unicode": lambda words: _outside_tags(words, lambda part: unicodedata.normalize("NFC", part)),
        "white space": _tidy_space,
        "tags": lambda words: TAG.sub(lambda tag: rules.tags.get(tag[0], tag[0]), words),
    }
    changes = []
    for name, step in steps.items():
        changed = step(text)
        if changed != text:
            changes.append(name)
        text = changed
    return CleanText(text, tuple(changes))


def _outside_tags(text: str, change: Callable[[str], str]) -> str:
    pieces = TAG.split(text)  # what the pattern's group caught stands at the odd places
    return "".join(piece if i % 2 else change(piece) for i, piece in enumerate(pieces))


def _tidy_space(text: str) -> str:
    lines = (
        _outside_tags(line, lambda part: re.sub(r"\s+", " ", part)).strip() for line in text.splitlines()
    )
    return "\n".join(filter(None, lines))
