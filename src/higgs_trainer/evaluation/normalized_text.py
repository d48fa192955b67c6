"""Normalise a text and a transcript before they are compared, so that only what was said counts.

The rules are Whisper's, from the package whisper-normalizer, so that error rates can be compared with published ones.
"""

import re
from functools import cache
from importlib.metadata import version

from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HOMOPHONES = {"won": "one", "to": "two", "too": "two", "for": "four", "fore": "four", "ate": "eight"}


@cache
def _english() -> EnglishTextNormalizer:
    return EnglishTextNormalizer()


@cache
def _basic() -> BasicTextNormalizer:
    return BasicTextNormalizer()


def normalize_text(text: str, *, language: str = "en") -> str:
    """Apply Whisper's rules for English ("en", "en-GB"), or its rules for all other languages.

    English: lower case, no punctuation, no fillers ("uh"), American spelling, contractions in full, and numbers as
    figures ("seven two nine" becomes "729"). Other languages: lower case, and a space for each sign or combining mark.
    """
    is_english = re.split("[-_]", language.lower())[0] == "en"
    return str((_english() if is_english else _basic())(text)).strip()


def spell_digits(text: str) -> str:
    """Read all numbers of an English text digit by digit: "72", "7-2" and "Seventy-two." become "seven two".

    Whisper's rules alone turn a digit string into one word, so that a single wrong digit makes the whole string wrong.
    They also drop leading zeros ("07"), so digits are spelled before these rules are applied, and after them.
    """
    figures = normalize_text(_space_digits(text))
    return " ".join(re.sub(r"[^\w\s]", " ", _space_digits(figures)).split())


def forgive_homophones(spelled: str) -> str:
    """Replace words of a spelled text that sound like digits: "to" becomes "two"."""
    return " ".join(HOMOPHONES.get(word, word) for word in spelled.split())


def has_recognisable_words(text: str, *, language: str = "en") -> bool:
    """Whether normalising leaves a letter or a digit of the text."""
    return any(character.isalnum() for character in normalize_text(text, language=language))


def describe_rules(*, digits_spelled: bool) -> str:
    """Name the rules for `figures.json`."""
    rules = f"whisper-normalizer {version('whisper-normalizer')}: English rules for English, basic rules otherwise"
    return f"{rules}; numbers read digit by digit" if digits_spelled else rules


def _space_digits(text: str) -> str:
    return re.sub(r"[0-9]", lambda digit: f" {DIGITS[int(digit[0])]} ", text)
