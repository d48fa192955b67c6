"""The figures of an evaluation as tables for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from higgs_trainer.evaluation.languages import describe_languages
from higgs_trainer.evaluation.precision import TOO_FEW, NumberStyle, show_p
from higgs_trainer.evaluation.statistics import FEWEST_UTTERANCES

ROWS = {
    "wer": ("word error rate", NumberStyle(1, is_percent=True)),
    "wer_homophones_forgiven": ("homophones forgiven", NumberStyle(1, is_percent=True)),
    "cer": ("character error rate", NumberStyle(1, is_percent=True)),
    "similarity": ("similarity to the voice", NumberStyle(3)),
    "similarity_to_others": ("similarity to others", NumberStyle(3)),
    "quality": ("predicted quality, 1 to 5", NumberStyle(2)),
    "stopped": ("stopped by itself", NumberStyle(0, is_percent=True)),
    "length_ratio": ("length / recording's length", NumberStyle(2)),
}
"""Title and style of each figure."""


def build_tables(report: Mapping[str, Any]) -> list[Table]:
    """Build a table with a column for each model, and one of the differences if two models were compared.

    Args:
        report: the content of `figures.json`.
    """
    models = report["models"]
    heard = f"; heard by {report['recogniser']}" if report["recogniser"] else "; words were not judged"
    spoken = describe_languages(report["languages"])
    title = f"value [95% interval]; {spoken}{heard}"
    table = Table("", *(model["model"] for model in models), box=None, title=title)
    for name, (title, style) in ROWS.items():
        figures = [model[name] for model in models]
        if any(figure is not None for figure in figures):
            table.add_row(title, *(_show(figure, style) for figure in figures))
            for language in models[0]["by_language"]:
                of_it = [model["by_language"].get(language, {}).get(name) for model in models]
                if any(figure is not None for figure in of_it):
                    table.add_row(f"  {language}", *(_show(figure, style) for figure in of_it))
    speeds = [model["audio_seconds_per_second"] for model in models]
    if any(speed is not None for speed in speeds):
        shown = ("-" if speed is None else f"{speed:.1f}" for speed in speeds)
        table.add_row("seconds of audio per second", *shown)
    table.add_row("clips", *(str(model["clips"]) for model in models))
    if any(model["clips"] < FEWEST_UTTERANCES for model in models):
        table.caption = (
            f"{TOO_FEW}: an interval and a test need {FEWEST_UTTERANCES} sentences or more; with n sentences, the "
            "smallest p is 2^-(n-1)"
        )
    if report["second_minus_first"] is None:
        return [table]
    return [table, _build_difference_table(report)]


def _build_difference_table(report: Mapping[str, Any]) -> Table:
    first, second = (model["model"] for model in report["models"][:2])
    title = f"{second} minus {first} ({report['test']})"
    table = Table("", "difference [95% interval]", "p", "sentences", box=None, title=title)
    for name, (row, style) in ROWS.items():
        found = report["second_minus_first"][name]
        if found is not None:
            p = show_p(found["p"], found["n"])
            table.add_row(row, _show(found, style, sign=True), p, str(found["n"]))
    return table


def _show(figure: Mapping[str, Any] | None, style: NumberStyle, *, sign: bool = False) -> str:
    if figure is None:
        return "-"
    value, low, high = figure["value"], figure["low"], figure["high"]
    if low is None:
        return f"{style.show(value, sign=sign)} ({TOO_FEW})"
    return style.show_with_interval(value, low, high, pattern=r"\[{}, {}]", sign=sign)
