"""Write whole numbers in words, by the rules of the language of the text. This is an option, never a default.

num2words provides the words, and Babel the thousands separators. Only unambiguous digits are expanded: a whole number
that is not part of a longer word, read as a cardinal. Everything else with digits (fractions, signs, times, dates,
`3rd`, `A4`, two numbers side by side) stays unchanged and is counted, because its words would be a guess. num2words is
silently wrong about fractions in some languages (Italian 3.5 becomes "tre").
"""

import functools
import re
from dataclasses import dataclass

from higgs_trainer.errors import UserError

# From here on, some languages of num2words fall back to English words, or have none.
LARGEST = 10**12
# `1 000` is one match, `5, 6` are two.
WITH_DIGITS = re.compile(r"\S*\d\S*(?:(?<=\d) (?=\d)\S*)*")
OPENING, CLOSING = "([{\"'“‘„«‹¿¡—–", ")]}\"'”’»›.,;:!?…—–"
NO_WORDS = re.compile(r"[\d()]")


@dataclass(frozen=True)
class Language:
    """The name of a language in num2words, and its locale in Babel, which knows more regions.

    Examples: ``pt_BR`` and ``pt_BR``; ``de`` and ``de_CH``.
    """

    words: str
    locale: str


@functools.cache
def find_language(name: str | None) -> Language | None:
    """Find the language of a row, such as ``pt-BR`` or ``en_US``. Return None if num2words does not support it.

    Raises:
        UserError: the libraries are not installed.
    """
    try:
        from num2words import CONVERTER_CLASSES
    except ImportError as error:
        raise UserError(
            "--expand-numbers needs num2words and Babel. Run: pip install 'higgs-trainer[numbers]'"
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
    """Write the whole numbers of a text in words."""

    def expand(found: re.Match[str]) -> str:
        core = found[0].lstrip(OPENING).rstrip(CLOSING)
        words = _expand_number(core, language)
        return found[0] if words is None else found[0].replace(core, words, 1)

    return WITH_DIGITS.sub(expand, text)


def _expand_number(core: str, language: Language) -> str | None:
    """Return the words of a whole number. Return None for anything else, and if num2words has no words for it."""
    from num2words import num2words

    number = _read_whole_number(core, language.locale)
    if number is None or number >= LARGEST:
        return None
    try:
        words = num2words(number, lang=language.words)
    except (NotImplementedError, OverflowError, TypeError, ValueError, KeyError, IndexError):
        # Incomplete languages of num2words raise any of these.
        return None
    return None if not words or NO_WORDS.search(words) else str(words)


def _read_whole_number(core: str, locale_name: str) -> int | None:
    """Read `1984`, and `1,984` or `1.984` or `1 984` if the language groups thousands so. `007` is not a number."""
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
    # Babel raises ValueError for what is not the name of a locale.
    except (UnknownLocaleError, NumberFormatError, ValueError):
        return None
    # A number with decimals is not whole, even 1.000.
    is_whole = number.as_tuple().exponent == 0
    return int(number) if is_whole else None
