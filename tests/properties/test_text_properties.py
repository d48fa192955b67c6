"""For any transcript: cleaning it twice equals cleaning it once, no word is lost, and whole numbers become words."""

import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st
from num2words import num2words

from higgs_trainer.manifest.numbers import Language, expand_numbers
from higgs_trainer.manifest.text import TAG, TextRules, clean_text

ENGLISH = Language("en", "en")
TAGS = ["[laugh]", "<SE>", "[", "]", "<", ">"]
SPACES = [" ", "\t", "\n", "\r\n", "\u2028", "\u00a0"]
PIECES = [*TAGS, *SPACES, "e", "\u0301", "é", "ab", "1", "1,000", "3.5"]
texts = st.one_of(st.text(max_size=30), st.lists(st.sampled_from(PIECES), max_size=20).map("".join))


@given(texts)
@settings(deadline=None)
def test_cleaning_twice_equals_cleaning_once(text):
    once = clean_text(text, TextRules())
    again = clean_text(once.text, TextRules())
    assert (again.text, again.changes) == (once.text, ())
    assert bool(once.changes) == (once.text != text)


@given(texts)
@settings(deadline=None)
def test_only_spaces_are_lost(text):
    clean = clean_text(text, TextRules()).text
    squeezed, before = ("".join(unicodedata.normalize("NFD", each).split()) for each in (clean, text))
    assert squeezed == before


@given(
    st.lists(st.tuples(st.sampled_from(["ab", "cd,"]), st.integers(0, 10**12 - 1), st.booleans()), min_size=1)
)
@settings(deadline=None)
def test_every_whole_number_between_words_becomes_its_words(parts):
    text = " ".join(
        f"{word} {number:,}" if grouped else f"{word} {number}" for word, number, grouped in parts
    )
    expected = " ".join(f"{word} {num2words(number)}" for word, number, _ in parts)
    assert expand_numbers(text, ENGLISH) == expected


@given(texts)
@settings(deadline=None)
def test_expanding_never_expands_a_part_of_a_number(text):
    """A word with digits is expanded as a whole or stays as a whole."""
    for piece in TAG.split(text):
        expanded = expand_numbers(piece, ENGLISH)
        left = [word for word in expanded.split() if any(map(str.isdigit, word))]
        assert all(word in piece for word in left)
