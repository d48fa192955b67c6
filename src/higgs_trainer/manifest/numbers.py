"""Whole numbers in digits -> words, by the rules of the text's own language: num2words for the words, Babel for what
parts the thousands. An option, never a default.

Only what can be read in one way is read: a whole number that stands by itself, as a cardinal. Whatever else has digits
in it (fractions, signs, times, dates, `3rd`, `A4`, two numbers side by side) stays as it is and is counted, since its
words would be a guess; and in fractions num2words is wrong without a word in some languages (Italian 3.5 is "tre").
"""

import functools
import re
from dataclasses import dataclass

from higgs_trainer.errors import UserError

LARGEST = 10**12  # beyond, some of num2words' languages fall back to English words, or to none
WITH_DIGITS = re.compile(r"\S*\d\S*(?:(?<=\d) (?=\d)\S*)*")  # `1 000` is one place, `5, 6` are two
BEFORE, AFTER = "([{\"'“‘„«‹¿¡—–", ")]}\"'”’»›.,;:!?…—–"
NO_WORDS = re.compile(r"[\d()]")


@dataclass(frozen=True)
class Language:
    """What num2words calls a language, and Babel, which knows more regions: ``pt_BR`` and ``pt_BR``, ``de`` and
    ``de_CH``."""

    words: str
    locale: str


@functools.cache
def find_language(name: str | None) -> Language | None:
    """The language that a row names, such as ``pt-BR`` or ``en_US``; None where it names none that num2words knows.

    Raises UserError where the libraries are not installed.
    """
    try:
        from num2words import CONVERTER_CLASSES
    except ImportError as error:
        raise UserError(
            "numbers are expanded by num2words and Babel; pip install 'higgs-trainer[numbers]'"
        ) from error
    if not name:
        return None
    language, _, region = name.strip().replace("-", "_").partition("_")
    locale = f"{language.lower()}_{region.upper()}" if region else language.lower()
    for words in (locale, language.lower()):
        if words in CONVERTER_CLASSES:
            return Language(words, locale)
    return None


def expand_numbers(text: str, language: Language) -> str:
    """The text with its whole numbers in words."""

    def expand(found: re.Match[str]) -> str:
        core = found[0].lstrip(BEFORE).rstrip(AFTER)
        words = _say(core, language)
        return found[0] if words is None else found[0].replace(core, words, 1)

    return WITH_DIGITS.sub(expand, text)


def _say(core: str, language: Language) -> str | None:
    """The words of a whole number; None for anything else, and where num2words has none."""
    from num2words import num2words

    number = _read_whole_number(core, language.locale)
    if number is None or number >= LARGEST:
        return None
    try:
        words = num2words(number, lang=language.words)
    except (NotImplementedError, OverflowError, TypeError, ValueError, KeyError, IndexError):
        return None  # languages of num2words that are not finished fail in all these ways
    return None if not words or NO_WORDS.search(words) else str(words)


def _read_whole_number(core: str, locale_name: str) -> int | None:
    """`1984`, and `1,984` or `1.984` or `1 984` where the language parts thousands so; not `007`."""
    from babel import Locale, UnknownLocaleError
    from babel.numbers import NumberFormatError, get_group_symbol, parse_decimal

    if not re.fullmatch(r"[1-9][\d.,'’ ]*|0", core, re.ASCII):
        return None
    if core.isdigit():
        return int(core)
    try:
        locale = Locale.parse(locale_name)
        group = get_group_symbol(locale)
        number = parse_decimal(
            core.replace(" ", group) if group.isspace() else core, locale=locale, strict=True
        )
    except (UnknownLocaleError, NumberFormatError, ValueError):  # ValueError: no name of a locale at all
        return None
    is_whole = number.as_tuple().exponent == 0  # 1.000 with three decimals is no thousand
    return int(number) if is_whole else None
