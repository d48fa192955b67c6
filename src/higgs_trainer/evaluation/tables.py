"""The figures of an evaluation as tables for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

ROWS = {
    "wer": ("word error rate", "{:.1%}"),
    "wer_homophones_forgiven": ("homophones forgiven", "{:.1%}"),
    "cer": ("character error rate", "{:.1%}"),
    "similarity": ("similarity to the voice", "{:.3f}"),
    "similarity_to_others": ("similarity to others", "{:.3f}"),
    "quality": ("predicted quality, 1 to 5", "{:.2f}"),
    "stopped": ("stopped by itself", "{:.0%}"),
    "length_ratio": ("length / recording's length", "{:.2f}"),
}
"""Title and format of each figure."""


def build_tables(report: Mapping[str, Any]) -> list[Table]:
    """Build a table with a column for each model, and one of the differences if two models were compared.

    Args:
        report: the content of `figures.json`.
    """
    models = report["models"]
    table = Table("", *(model["model"] for model in models), box=None, title="value [95% interval]")
    for name, (title, pattern) in ROWS.items():
        figures = [model[name] for model in models]
        if any(figure is not None for figure in figures):
            table.add_row(title, *(_show(figure, pattern) for figure in figures))
    speeds = [model["audio_seconds_per_second"] for model in models]
    if any(speed is not None for speed in speeds):
        shown = ("-" if speed is None else f"{speed:.1f}" for speed in speeds)
        table.add_row("seconds of audio per second", *shown)
    table.add_row("clips", *(str(model["clips"]) for model in models))
    if report["second_minus_first"] is None:
        return [table]
    return [table, _build_difference_table(report)]


def _build_difference_table(report: Mapping[str, Any]) -> Table:
    first, second = (model["model"] for model in report["models"][:2])
    title = f"{second} minus {first} ({report['test']})"
    table = Table("", "difference [95% interval]", "p", "sentences", box=None, title=title)
    for name, (row, pattern) in ROWS.items():
        found = report["second_minus_first"][name]
        if found is not None:
            p = "-" if found["p"] is None else f"{found['p']:.4f}"
            table.add_row(row, _show(found, pattern.replace(":", ":+")), p, str(found["n"]))
    return table


def _show(figure: Mapping[str, float | None] | None, pattern: str) -> str:
    if figure is None:
        return "-"
    value = pattern.format(figure["value"])
    if figure["low"] is None:
        return f"{value} (one clip: no interval)"
    return rf"{value} \[{pattern.format(figure['low'])}, {pattern.format(figure['high'])}]"
