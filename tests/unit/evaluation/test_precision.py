"""Figures are shown with the digits that their number of utterances allows."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from higgs_trainer.evaluation.figures import build_report, compute_differences, compute_figures
from higgs_trainer.evaluation.judging import JudgedClip
from higgs_trainer.evaluation.precision import NumberStyle, round_p, show_p
from higgs_trainer.evaluation.tables import build_tables

PERCENT = NumberStyle(1, is_percent=True)


@pytest.mark.parametrize(
    ("p", "n", "shown"),
    [
        (1.0, 1, "too few"),
        (0.0625, 5, "too few"),
        (0.03125, 6, "0.03"),
        (0.6875, 6, "0.69"),
        (0.015625, 7, "0.02"),
        (0.0078125, 8, "0.008"),
        (0.24186, 40, "0.24"),
        (0.02419, 40, "0.024"),
        (0.00019998, 40, "0.0002"),
        (1.0, 40, "1.0"),
        (0.24186, None, "0.24"),
    ],
)
def test_p_has_no_digit_below_the_smallest_p_that_there_can_be(p: float, n: int | None, shown: str) -> None:
    assert show_p(p, n) == shown
    if n is not None and n >= 6:
        assert round_p(p, n) == float(shown)


@pytest.mark.parametrize(
    ("style", "figure", "shown"),
    [
        (PERCENT, (1.1512, 1.04, 1.25), "115% [104%, 125%]"),
        (PERCENT, (0.0321, 0.0102, 0.0604), "3.2% [1.0%, 6.0%]"),
        (PERCENT, (1.0, 1.0, 1.0), "100.0% [100.0%, 100.0%]"),
        (PERCENT, (0.5, None, None), "50.0%"),
        (NumberStyle(3), (0.5851, 0.45, 0.70), "0.59 [0.45, 0.70]"),
        (NumberStyle(3), (0.8381, 0.8252, 0.8501), "0.838 [0.825, 0.850]"),
        (NumberStyle(0, is_percent=True), (0.5, 0.1, 0.9), "50% [10%, 90%]"),
    ],
)
def test_a_wide_interval_takes_digits_away(style: NumberStyle, figure: tuple[float, ...], shown: str) -> None:
    assert style.show_with_interval(*figure, pattern="[{}, {}]") == shown


def judged(model: str, number: int, errors: int | None, language: str = "en") -> JudgedClip:
    return JudgedClip(
        model,
        number,
        "a text",
        None,
        "",
        errors,
        4,
        errors,
        9,
        0.5,
        None,
        None,
        True,
        1.0,
        None,
        None,
        language,
    )


def read_tables(report: dict) -> str:
    console = Console(width=200, file=io.StringIO())
    for table in build_tables(report):
        console.print(table)
    return console.file.getvalue()


def test_too_few_sentences_are_called_so_in_the_tables() -> None:
    rows = {model: [judged(model, i, errors) for i in range(3)] for model, errors in (("m", 0), ("n", 4))}
    report = build_report(
        [compute_figures(one) for one in rows.values()], compute_differences(*rows.values())
    )
    difference = report["second_minus_first"]["wer"]
    assert (difference["p"], difference["smallest_p"], difference["low"]) == (0.25, 0.25, None)
    text = read_tables(report)
    assert "0.0% (too few)" in text
    assert "+100.0% (too few)" in text
    assert "need 6 sentences or more" in text
    assert "0.25" not in text


def test_each_language_has_its_own_error_rates() -> None:
    rows = [
        judged("m", i, errors, language)
        for i, (errors, language) in enumerate([(0, "nl"), (4, "nl"), (1, "en")])
    ]
    report = build_report([compute_figures(rows)], None, recogniser="whisper-base")
    (model,) = report["models"]
    assert (report["languages"], report["recogniser"]) == ({"nl": 2, "en": 1}, "whisper-base")
    assert {code: one["clips"] for code, one in model["by_language"].items()} == {"en": 1, "nl": 2}
    assert [model["by_language"][code]["wer"]["value"] for code in ("en", "nl")] == [0.25, 0.5]
    assert model["wer"]["value"] == 5 / 12
    text = read_tables(report)
    assert "English (en) and Dutch (nl); heard by whisper-base" in " ".join(text.split())
    shown = [line.split()[:2] for line in text.splitlines()]
    assert ["en", "25.0%"] in shown
    assert ["nl", "50.0%"] in shown
    assert build_report([compute_figures(rows[:2])], None)["models"][0]["by_language"] == {}


def test_a_language_without_spaces_is_only_in_the_character_error_rate() -> None:
    rows = [judged("m", 0, 1, "nl"), replace(judged("m", 1, 3, "zh"), word_errors=None, words=None)]
    (model,) = build_report([compute_figures(rows)], None)["models"]
    assert (model["wer"]["value"], model["wer"]["n"], model["cer"]["value"]) == (1 / 4, 1, 4 / 18)
    assert model["by_language"]["zh"]["wer"] is None
