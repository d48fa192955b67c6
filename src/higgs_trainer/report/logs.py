"""Read the log of a run as columns, and choose the charts to draw from them."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from higgs_trainer.report.part import Part, read_lines, read_object
from higgs_trainer.run_folder import LOG_FILE, TRAINER_STATE_FILE

OVERALL, EACH_CODEBOOK = "Overall", "Loss of each codebook"

Columns = dict[str, list[float | str | None]]


@dataclass(frozen=True)
class Chart:
    """One chart. ``train`` and ``held_out`` are the logged keys of its two curves for each run."""

    title: str
    train: str
    held_out: str = ""


@dataclass(frozen=True)
class ChartGroup:
    """Charts under one heading. With ``one_scale`` they are drawn small and share their vertical axis."""

    title: str
    charts: tuple[Chart, ...]
    one_scale: bool
    note: str = ""


def read_logs(folder: Path) -> Part[Columns]:
    """Read the log as columns of equal length, "step" first. A value is None where a log lacks the key.

    Numbers keep every digit of the file. NaN and infinities become strings, because JSON cannot express them.
    """
    own = read_lines(folder / LOG_FILE, otherwise="training writes it at each log")
    if own.value is None:
        state = read_object(folder / TRAINER_STATE_FILE, otherwise="training writes it at the end")
        logs = state.value.get("log_history", []) if state.value is not None else []
        if logs:
            return Part(_to_columns(logs), f"The curves are read from {TRAINER_STATE_FILE}: {own.note}")
        return Part(None, own.note)
    columns = _to_columns(own.value)
    return Part(columns, own.note) if columns["step"] else Part(None, f"{LOG_FILE} is empty.")


def _to_columns(logs: list[dict[str, Any]]) -> Columns:
    logs = [log for log in logs if isinstance(log.get("step"), int)]
    keys = dict.fromkeys(["step", *(key for log in logs for key in log if is_number(log[key]))])
    return {key: [_to_json(log.get(key)) for log in logs] for key in keys}


def is_number(value: Any) -> bool:
    """Return whether a value is a number, and not a boolean."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _to_json(value: Any) -> float | str | None:
    if not is_number(value):
        return None
    return value if math.isfinite(value) else str(float(value))


def choose_charts(runs: list[Columns]) -> list[ChartGroup]:
    """Choose the charts for what these runs logged. The note of a group lists the charts that no run has values for."""
    keys = {key for columns in runs for key in columns}
    codebooks = sorted(
        {int(match[1]) for key in keys if (match := re.fullmatch(r"(?:eval_)?codebook_(\d+)_loss", key))}
    )
    wanted = {
        OVERALL: [
            Chart("Loss", "loss", "eval_loss"),
            Chart(
                "Codebook 0, share of codes predicted correctly",
                "codebook_0_accuracy",
                "eval_codebook_0_accuracy",
            ),
        ],
        EACH_CODEBOOK: [
            Chart(f"Codebook {k}", f"codebook_{k}_loss", f"eval_codebook_{k}_loss") for k in codebooks
        ],
        "Optimizer": [Chart("Learning rate", "learning_rate"), Chart("Gradient norm", "grad_norm")],
    }
    if keys & {"text_loss", "eval_text_loss"}:
        wanted[OVERALL].insert(1, Chart("Text loss", "text_loss", "eval_text_loss"))
    groups = []
    for title, charts in wanted.items():
        drawn = [chart for chart in charts if keys & {chart.train, chart.held_out}]
        absent = [chart.title.lower() for chart in charts if chart not in drawn]
        if not charts:
            absent = ["the losses of the codebooks"]
        groups.append(
            ChartGroup(
                title,
                tuple(drawn),
                title == EACH_CODEBOOK,
                f"Not logged: {', '.join(absent)}." if absent else "",
            )
        )
    return groups


def first_and_last(columns: Columns, key: str) -> tuple[float, float] | None:
    """Return the first and the last finite value of a column, or None if it has fewer than two."""
    values = [value for value in columns.get(key, []) if isinstance(value, (int, float))]
    return (values[0], values[-1]) if len(values) > 1 else None
