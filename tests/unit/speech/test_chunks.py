"""Long texts are split at the ends of sentences, and no text is lost."""

import re

import pytest

from higgs_trainer.speech.chunks import cut_text, estimate_seconds

PROSE = "Dr. Smith came at 3 p.m. on Monday. He left at once! Did he say why? “No.” It was 3.5 km to the sea."


@pytest.mark.parametrize("max_seconds", [0.1, 2.0, 4.0, 100.0])
def test_no_word_is_lost_and_parts_are_short_enough(max_seconds: float) -> None:
    parts = cut_text(PROSE, max_seconds=max_seconds)
    assert " ".join(parts) == PROSE
    sentences = cut_text(PROSE, max_seconds=0.1)
    assert all(estimate_seconds(part) <= max_seconds or part in sentences for part in parts)


def test_abbreviations_and_numbers_do_not_end_a_sentence() -> None:
    assert cut_text(PROSE, max_seconds=0.1)[:2] == ["Dr. Smith came at 3 p.m. on Monday.", "He left at once!"]
    assert cut_text("你好。今天天气很好。我们去公园吧！", max_seconds=1.0, language="zh") == [
        "你好。",
        "今天天气很好。",
        "我们去公园吧！",
    ]


def test_a_short_text_is_not_changed() -> None:
    assert cut_text("[SPEAKER0] one\n[SPEAKER1] two", max_seconds=5.0) == ["[SPEAKER0] one\n[SPEAKER1] two"]


def test_every_part_of_a_dialogue_begins_with_its_speaker() -> None:
    text = "[SPEAKER0] One two three. Four five six.\n[SPEAKER1] Seven. Eight nine.\nZero one two."
    parts = cut_text(text, max_seconds=1.6)
    assert parts == [
        "[SPEAKER0] One two three.",
        "[SPEAKER0] Four five six.\n[SPEAKER1] Seven.",
        "[SPEAKER1] Eight nine.",
        "[SPEAKER1] Zero one two.",
    ] or parts == [
        "[SPEAKER0] One two three.",
        "[SPEAKER0] Four five six.\n[SPEAKER1] Seven.",
        "[SPEAKER1] Eight nine. Zero one two.",
    ]
    assert re.sub(r"\[SPEAKER\d\]|\s", "", "".join(parts)) == re.sub(r"\[SPEAKER\d\]|\s", "", text)
