"""Whatever a transcript holds: putting it in order twice is putting it in order once, and no word is lost."""

import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from higgs_trainer.manifest.numbers import Language, expand_numbers
from higgs_trainer.manifest.text import TAG, TextRules, clean_text

TAGS = ["[laugh]", "<SE>", "[", "]", "<", ">"]
SPACES = [" ", "\t", "\n", "\r\n", "\u2028", "\u00a0"]
PIECES = [*TAGS, *SPACES, "e", "\u0301", "é", "ab", "1", "1,000", "3.5"]
texts = st.one_of(st.text(max_size=30), st.lists(st.sampled_from(PIECES), max_size=20).map("".join))


@given(texts)
@settings(deadline=None)
def test_cleaning_is_done_once(text):
    once = clean_text(text, TextRules())
    again = clean_text(once.text, TextRules())
    assert (again.text, again.changes) == (once.text, ())
    assert bool(once.changes) == (once.text != text)


@given(texts)
@settings(deadline=None)
def test_nothing_but_spaces_is_lost(text):
    clean = clean_text(text, TextRules()).text
    squeezed, before = ("".join(unicodedata.normalize("NFD", each).split()) for each in (clean, text))
    assert squeezed == before


@given(texts)
@settings(deadline=None)
def test_expanding_leaves_no_half_of_a_number(text):
    """A place with digits is expanded whole or left whole."""
    english = Language("en", "en")
    for piece in TAG.split(text):
        expanded = expand_numbers(piece, english)
        left = [word for word in expanded.split() if any(map(str.isdigit, word))]
        assert all(word in piece for word in left)
