"""Text before word error rate, and the counting of errors, on cases with a known answer.

The expected texts are those of the rules that Whisper's paper lists (arXiv:2212.04356, appendix C), applied by hand.
"""

import pytest

from higgs_trainer.evaluation.normalized_text import (
    describe_rules,
    forgive_homophones,
    has_recognisable_words,
    normalize_text,
    spell_digits,
)
from higgs_trainer.evaluation.word_errors import ErrorCount, count_errors


@pytest.mark.parametrize(
    ("written", "normalized"),
    [
        ("Mr. Smith didn't, uh, come [noise] (again).", "mister smith did not come"),
        ("The colour, twenty-five percent!", "the color 25%"),
        ("It cost two hundred dollars", "it cost $200"),
        ("a_b – “c”", "a b c"),
    ],
)
def test_english_has_the_rules_of_whispers_paper(written: str, normalized: str) -> None:
    assert normalize_text(written) == normalize_text(written, language="en-GB") == normalized


@pytest.mark.parametrize(
    ("written", "normalized"), [("Straße, ÉTÉ!", "straße été"), ("L’été [bruit] 2,5", "l été 2 5")]
)
def test_other_languages_lose_only_case_and_signs(written: str, normalized: str) -> None:
    assert normalize_text(written, language="de") == normalized


@pytest.mark.parametrize(
    ("language", "written", "normalized"),
    [
        ("nl", "Ten eerste, 3 vissen.", "ten eerste drie vissen"),
        ("nl-BE", "Er zijn 25 man; I'm too, colour.", "er zijn vijfentwintig man i m too colour"),
        ("Dutch", "to won for", "to won for"),
        ("cs", "Mám 2 ryby a twenty one.", "mám dva ryby a twenty one"),
        ("fr", "Il y a 21 chats", "il y a vingt et un chats"),
        # A language that num2words does not know keeps its figures.
        ("xx", "uh 3", "uh 3"),
        ("hi", "नमस्ते दुनिया!", "नमस्ते दुनिया"),
    ],
)
def test_nothing_english_is_applied_to_other_languages(language: str, written: str, normalized: str) -> None:
    assert normalize_text(written, language=language) == normalized


@pytest.mark.parametrize(
    ("language", "text", "heard"),
    [
        ("nl", "Ten eerste, drie vissen.", "ten eerste 3 vissen"),
        ("cs", "Je jich 14.", "Je jich čtrnáct."),
        ("de", "Um 8 Uhr", "um acht Uhr"),
    ],
)
def test_numbers_spoken_and_in_figures_are_equal_in_their_language(
    language: str, text: str, heard: str
) -> None:
    found = count_errors(text, heard, language=language)
    assert (found.words.errors, found.characters.errors) == (0, 0)
    assert found.words_forgiven is None


def test_scripts_without_spaces_have_only_a_character_error_rate() -> None:
    found = count_errors("今天 天气很好。", "今天天汽很好", language="zh-CN")
    assert (found.words, found.characters) == (None, ErrorCount(1, 6))
    thai = count_errors("สวัสดี", "สวัสดี ครับ", language="th")
    assert (thai.words, thai.characters) == (None, ErrorCount(4, 6))
    assert count_errors("天气", "天气", language="ko").words == ErrorCount(0, 1)


@pytest.mark.parametrize(
    "written",
    [
        "zero seven two nine four",
        "07294",
        "0-7-2-9-4",
        "0, 7, 2, 9, 4.",
        "Zero, seven, two, ninety-four!",
        "  07,294 ",
        "0 72 nine 4",
        "07.294",
    ],
)
def test_one_number_is_spelled_the_same_however_it_is_written(written: str) -> None:
    assert spell_digits(written) == "zero seven two nine four"
    assert spell_digits(spell_digits(written)) == "zero seven two nine four"


@pytest.mark.parametrize(
    ("written", "spelled"),
    [
        ("thirteen", "one three"),
        ("forty", "four zero"),
        ("one", "one"),
        ("A 2nd try", "a two nd try"),
        ("...", ""),
    ],
)
def test_spelling_keeps_what_is_no_digit(written: str, spelled: str) -> None:
    assert spell_digits(written) == spelled


def test_homophones_are_forgiven_only_where_digits_are_spelled() -> None:
    assert forgive_homophones("two for eight") == "two four eight"
    spelled = count_errors("two four eight one", "To, for ate won.", digits_spelled=True)
    assert (spelled.words, spelled.words_forgiven) == (ErrorCount(4, 4), ErrorCount(0, 4))
    plain = count_errors("the cat went to bed", "the cat went two bed")
    assert (plain.words, plain.words_forgiven) == (ErrorCount(1, 5), None)


def test_substituted_deleted_and_inserted_words_and_characters_are_counted() -> None:
    found = count_errors("the cat sat on the mat", "a cat sat the mat again")
    assert found.words == ErrorCount(3, 6)  # "the" -> "a", "on" deleted, "again" inserted
    assert found.characters.total == 22
    assert count_errors("ab", "").characters == ErrorCount(2, 2)
    assert count_errors("one", "red green blue").words == ErrorCount(3, 1)


def test_a_text_without_a_word_is_refused() -> None:
    for text in ("?", "...", "[noise]", "uh"):
        assert not has_recognisable_words(text)
        with pytest.raises(ValueError, match="one word or more"):
            count_errors(text, "one")
    assert has_recognisable_words("uh", language="de")
    assert has_recognisable_words("7")
    assert has_recognisable_words("天气", language="zh")


def test_the_rules_are_named_with_their_version() -> None:
    assert describe_rules(digits_spelled=False).startswith("whisper-normalizer ")
    assert describe_rules(digits_spelled=True).endswith("digit by digit")
