"""Split long texts into parts that the model can generate well, at the ends of sentences.

Sentences are found by sentencex (the Wikimedia Foundation's segmenter, about 300 languages, offline).
"""

import re
from collections.abc import Iterator

import sentencex

from higgs_trainer.manifest.text import SPEAKER_TAG

BYTES_PER_SECOND = 15
"""Rough length of the UTF-8 text that is spoken in one second.

Bytes fit more scripts than characters do: an ideograph has three bytes and takes about as long as three Latin letters.
"""

TURN = re.compile(r"(?=\[SPEAKER\d+\])|\n")


def estimate_seconds(text: str) -> float:
    """Estimate how many seconds a text takes to say (`BYTES_PER_SECOND`), without its speaker tags."""
    return len(SPEAKER_TAG.sub("", text).encode()) / BYTES_PER_SECOND


def cut_text(text: str, *, max_seconds: float, language: str = "en") -> list[str]:
    """Split a text into parts of whole sentences.

    A text that is short enough is returned unchanged. In a dialogue, each part begins with the tag of its speaker.

    Args:
        max_seconds: the estimated duration that a part may have (`estimate_seconds`). A longer sentence is not split.
        language: a code such as "en" or "de". It decides which abbreviations do not end a sentence.
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
    """Yield each sentence with the tag of its speaker. The tag is empty before the first one in the text."""
    tag = ""
    for turn in TURN.split(text):
        words = turn.strip()
        if found := SPEAKER_TAG.match(words):
            tag, words = found[0], words[found.end() :]
        for sentence in sentencex.segment(language, words):
            if sentence.strip():
                yield tag, sentence.strip()
