"""Read the log of a run as columns, and choose the charts to draw from them."""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from higgs_trainer.report.part import Part, open_lines, read_object
from higgs_trainer.report.thinning import Columns, ThinnedLog
from higgs_trainer.run_folder import LOG_FILE, TRAINER_STATE_FILE

OVERALL, EACH_CODEBOOK = "Overall", "Loss of each codebook"

MOST_STATE_BYTES = 50_000_000
# Floats, and JavaScript, count exactly so far.
LARGEST_STEP = 2**53


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
    """Read the log as columns. Numbers keep every digit of the file. Of a long log, `ThinnedLog` keeps a part."""
    own = open_lines(folder, LOG_FILE, otherwise="training writes it at each log")
    if own.value is None:
        state = read_object(
            folder, TRAINER_STATE_FILE, otherwise="training writes it at the end", most_bytes=MOST_STATE_BYTES
        )
        logs = state.value.get("log_history") if state.value is not None else None
        thinned = _thin(logs) if isinstance(logs, list) else ThinnedLog()
        if thinned.num_lines:
            note = f"The curves are read from {TRAINER_STATE_FILE}: {own.note}"
        else:
            is_absent = (
                not (folder / TRAINER_STATE_FILE).is_symlink() and not (folder / TRAINER_STATE_FILE).exists()
            )
            note = own.note if is_absent else f"{own.note} {state.note}".strip()
    else:
        thinned = _thin(own.value, skip=own.value.skip)
        note = own.value.note or ("" if thinned.num_lines else f"{LOG_FILE} is empty.")
    if not thinned.num_lines:
        return Part(None, note)
    return Part(thinned.list_columns(), " ".join(filter(None, (note, thinned.describe()))))


def _thin(logs: Iterable[Any], skip: Callable[[], None] = lambda: None) -> ThinnedLog:
    """Read logs. ``skip`` is called after one that has no step."""
    thinned = ThinnedLog()
    for log in logs:
        step = log.get("step") if isinstance(log, dict) else None
        if not isinstance(step, int) or isinstance(step, bool) or abs(step) > LARGEST_STEP:
            skip()
            continue
        thinned.add(step, _list_metrics(log))
    return thinned


def _list_metrics(log: dict[str, Any]) -> dict[str, float]:
    metrics = {key: value for key, value in log.items() if type(value) is float}
    if len(metrics) + 1 < len(log):
        others = {key: value for key, value in log.items() if type(value) is int and key != "step"}
        metrics |= {key: _to_float(value) for key, value in others.items()}
    return metrics


def _to_float(value: int) -> float:
    """Return an integer as it is, or infinity if no float can hold it."""
    if abs(value) <= LARGEST_STEP:
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is a number, and not a boolean."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


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
