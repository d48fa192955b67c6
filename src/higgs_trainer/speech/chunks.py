"""Long texts -> parts of a length that the model speaks well, cut at the ends of sentences.

The ends of sentences are found by sentencex (the Wikimedia Foundation's segmenter, some 300 languages, offline).
"""

import re
from collections.abc import Iterator

import sentencex

from higgs_trainer.manifest.text import SPEAKER_TAG

BYTES_PER_SECOND = 15
"""Of text in UTF-8, roughly, in speech of an ordinary pace. Bytes serve more scripts than letters: an ideograph has
three, and takes about as long as three Latin letters."""

TURN = re.compile(r"(?=\[SPEAKER\d+\])|\n")


def estimate_seconds(text: str) -> float:
    """How long a text takes to say, roughly (`BYTES_PER_SECOND`); speaker tags are not said."""
    return len(SPEAKER_TAG.sub("", text).encode()) / BYTES_PER_SECOND


def cut_text(text: str, *, max_seconds: float, language: str = "en") -> list[str]:
    """Parts of whole sentences, each about as long as ``max_seconds`` at most (`estimate_seconds`); a text that is
    short enough is left as it is. A sentence that is longer alone stays whole.

    In a dialogue every part begins with the tag of who speaks, which the part before may have named.
    ``language``: a code such as "en" or "de"; it decides what is an abbreviation.
    """
    if estimate_seconds(text) <= max_seconds:
        return [text]
    parts: list[str] = []
    speaker_of_part = ""
    for tag, sentence in _split_sentences(text, language):
        joined = ""
        if parts:
            joined = f"{parts[-1]} {sentence}" if tag == speaker_of_part else f"{parts[-1]}\n{tag} {sentence}"
        if parts and estimate_seconds(joined) <= max_seconds:
            parts[-1] = joined
        else:
            parts.append(f"{tag} {sentence}".strip())
        speaker_of_part = tag
    return parts


def _split_sentences(text: str, language: str) -> Iterator[tuple[str, str]]:
    """Each sentence with the tag of who speaks it, empty where nobody is named."""
    tag = ""
    for turn in TURN.split(text):
        words = turn.strip()
        if found := SPEAKER_TAG.match(words):
            tag, words = found[0], words[found.end() :]
        for sentence in sentencex.segment(language, words):
            if sentence.strip():
                yield tag, sentence.strip()
