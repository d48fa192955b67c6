"""Normalise a text and a transcript before they are compared, so that only what was said counts.

The rules are Whisper's, from the package whisper-normalizer, so that error rates can be compared with published ones.
English has its own rules. All other languages have the basic rules, and numbers in their own words.
"""

import re
from collections.abc import Collection
from functools import cache
from importlib.metadata import version

from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from higgs_trainer.errors import UserError
from higgs_trainer.evaluation.languages import WITHOUT_SPACES, read_language
from higgs_trainer.manifest.numbers import expand_numbers, find_language

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HOMOPHONES = {"won": "one", "to": "two", "too": "two", "for": "four", "fore": "four", "ate": "eight"}


@cache
def _english() -> EnglishTextNormalizer:
    return EnglishTextNormalizer()


@cache
def _basic() -> BasicTextNormalizer:
    # Marks are vowels in many scripts. Accents of Latin letters are no marks here, since the text is composed (NFKC).
    return BasicTextNormalizer(preserve_marks=True)


def normalize_text(text: str, *, language: str = "en") -> str:
    """Apply Whisper's rules for English ("en", "en-GB"), or its rules for all other languages.

    English: lower case, no punctuation, no fillers ("uh"), American spelling, contractions in full, and numbers as
    figures ("seven two nine" becomes "729"). Other languages: lower case, a space for each sign, and whole numbers in
    words of the language, if num2words has them ("3 vissen" becomes "drie vissen"). Of a language that is written
    without spaces, spaces are removed.
    """
    code = read_language(language)
    if code == "en":
        return str(_english()(text)).strip()
    words = find_language(language) or find_language(code)
    plain = str(_basic()(text if words is None else expand_numbers(text, words))).strip()
    return re.sub(r"\s", "", plain) if code in WITHOUT_SPACES else plain


def check_number_words(languages: Collection[str]) -> None:
    """Check that the library with the words of numbers is there, which every language but English needs.

    Raises:
        UserError: it is not installed.
    """
    for language in set(languages) - {"en"}:
        try:
            find_language(language)
        except UserError as error:
            raise UserError(
                "word errors in other languages than English need num2words and Babel, which write numbers in words. "
                "Run: pip install 'higgs-trainer[evaluate]'"
            ) from error


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
    rules = _english() if read_language(language) == "en" else _basic()
    return any(character.isalnum() for character in str(rules(text)))


def describe_rules(*, digits_spelled: bool) -> str:
    """Name the rules for `figures.json`."""
    rules = (
        f"whisper-normalizer {version('whisper-normalizer')}: English rules for English; other languages have the "
        "basic rules with marks kept, and whole numbers in words by num2words"
    )
    return f"{rules}; numbers read digit by digit" if digits_spelled else rules


def _space_digits(text: str) -> str:
    return re.sub(r"[0-9]", lambda digit: f" {DIGITS[int(digit[0])]} ", text)
