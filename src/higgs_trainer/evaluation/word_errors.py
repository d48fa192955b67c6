"""Count the differences between a text and the transcript of its speech (jiwer)."""

from dataclasses import dataclass
from typing import Any

import jiwer

from higgs_trainer.evaluation.languages import WITHOUT_SPACES, read_language
from higgs_trainer.evaluation.normalized_text import forgive_homophones, normalize_text, spell_digits


@dataclass(frozen=True)
class ErrorCount:
    """Substitutions, deletions and insertions in one transcript, and the number of words or characters in its text."""

    errors: int
    total: int


@dataclass(frozen=True)
class TranscriptErrors:
    """Errors of one transcript.

    Attributes:
        words: None if the language is written without spaces between words.
        words_forgiven: word errors with homophones of digits forgiven, or None.
    """

    words: ErrorCount | None
    characters: ErrorCount
    words_forgiven: ErrorCount | None


def count_errors(
    text: str, transcript: str, *, language: str = "en", digits_spelled: bool = False
) -> TranscriptErrors:
    """Normalise both sides alike, and count wrong words and wrong characters.

    Spaces count as characters, except in languages that are written without spaces, where they are ignored.

    Args:
        language: the language of the text, which decides the rules (`normalize_text`).
        digits_spelled: compare numbers digit by digit (`spell_digits`), and also count words with homophones forgiven.

    Raises:
        ValueError: the text has no word.
    """
    if digits_spelled:
        expected, heard = spell_digits(text), spell_digits(transcript)
    else:
        expected, heard = (normalize_text(side, language=language) for side in (text, transcript))
    if not any(character.isalnum() for character in expected):
        raise ValueError(f"an error rate needs a text with one word or more, not {text!r}")
    forgiven = None
    if digits_spelled:
        forgiven = _count(jiwer.process_words(forgive_homophones(expected), forgive_homophones(heard)))
    has_words = digits_spelled or read_language(language) not in WITHOUT_SPACES
    return TranscriptErrors(
        _count(jiwer.process_words(expected, heard)) if has_words else None,
        _count(jiwer.process_characters(expected, heard)),
        forgiven,
    )


def _count(found: Any) -> ErrorCount:
    errors = found.substitutions + found.deletions + found.insertions
    return ErrorCount(errors, found.hits + found.substitutions + found.deletions)
