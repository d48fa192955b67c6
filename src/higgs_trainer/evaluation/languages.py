"""The languages that are spoken in an evaluation, as the codes that recognisers use."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from transformers.models.whisper.tokenization_whisper import LANGUAGES

from higgs_trainer.errors import UserError, count_noun
from higgs_trainer.manifest.languages import find_plain_code

DEFAULT_LANGUAGE = "en"
"""The language of a text if neither its row nor an option names one."""

LANGUAGE_OPTION = "--language"
"""The option of ``evaluate`` for the language of texts that name none."""

WHISPER_LANGUAGES = frozenset(LANGUAGES)
"""The languages of a multilingual Whisper model."""

WITHOUT_SPACES = frozenset(("bo", "dz", "ja", "km", "lo", "my", "th", "yue", "zh"))
"""Languages that are written without spaces between words, so that an error rate counts characters."""

OTHER_CODES = {"cmn": "zh", "fil": "tl", "in": "id", "iw": "he", "jv": "jw", "lao": "lo", "nb": "no"}
"""Codes for which Whisper uses another one."""


def read_language(name: str) -> str:
    """Return the code of a language: "nl" for "nl-BE", "nl_NL", "Dutch" and "dutch"."""
    code = find_plain_code(name)
    return OTHER_CODES.get(code, code)


def count_languages(names: Iterable[str | None], default: str | None) -> Counter[str]:
    """Count the texts of each language. ``default`` is the language of texts that name none."""
    return Counter(read_language(name or default or DEFAULT_LANGUAGE) for name in names)


def describe_languages(codes: Collection[str]) -> str:
    """Name languages for a message: "English (en) and Dutch (nl)"."""
    named = [f"{LANGUAGES[code].title()} ({code})" if code in LANGUAGES else code for code in sorted(codes)]
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"


def describe_unnamed_languages(names: Sequence[str | None], default: str | None, option: str) -> str | None:
    """Describe the texts that are taken as English only because nothing names their language. None: there are none."""
    unnamed = sum(not name for name in names)
    if default is not None or unnamed == 0:
        return None
    texts = count_noun(unnamed, "text names", "texts name")
    return (
        f'note: {texts} no language and count as English. If they are not, give the rows a "language", or set '
        f"{option}."
    )


def check_languages_are_named(names: Sequence[str | None], default: str | None, option: str) -> None:
    """Raise ``UserError`` if some texts name no language, although others name one that is not English.

    The unnamed ones are probably not English either. Heard as English, nearly all of their words would be wrong.
    """
    unnamed = sum(not name for name in names)
    others = set(count_languages(filter(None, names), None)) - {DEFAULT_LANGUAGE}
    if default is None and unnamed and others:
        texts = count_noun(unnamed, "text names", "texts name")
        raise UserError(
            f"{texts} no language, but others are in {describe_languages(others)}. "
            f'Give every row a "language", or set {option} to the language of those that name none.'
        )


def check_digits_are_english(languages: Mapping[str, int]) -> None:
    """Raise ``UserError`` if digits are to be spelled in another language than English."""
    if others := set(languages) - {"en"}:
        raise UserError(
            f"digits can be compared one by one only in English, but texts are in {describe_languages(others)}. "
            "Leave out --spell-digits: numbers are then compared as words of their language."
        )
