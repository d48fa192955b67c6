"""Name a page after its runs: "nl, LoRA on higgs-audio-v2, 24 Nov 2026"."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from higgs_trainer.report.runs import RunContents, find_setting
from higgs_trainer.run_folder import SIGNS_OF_A_RUN

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def build_title(runs: Sequence[RunContents]) -> str:
    """Return the names of the runs, what was trained, and when the last one ended."""
    names = " and ".join(run.name for run in runs)
    return ", ".join(filter(None, (names, describe_training(runs), _find_date(runs))))


def describe_training(runs: Sequence[RunContents]) -> str:
    """Say in a few words what was trained, and from which model. Empty if no run has a recipe."""
    bases = dict.fromkeys(str(find_setting(run.settings, "model", "name_or_path") or "?") for run in runs)
    kinds = dict.fromkeys("LoRA" if run.settings.get("adapter") else "all parameters" for run in runs)
    names = " and ".join(Path(base).name for base in bases)
    return f"{' and '.join(kinds)} on {names}" if any(run.settings for run in runs) else ""


def _find_date(runs: Sequence[RunContents]) -> str:
    """Return the day on which training last wrote into one of the folders, independently of the locale."""
    files = [run.folder / name for run in runs for name in SIGNS_OF_A_RUN]
    times = [file.stat().st_mtime for file in files if file.is_file()]
    if not times:
        return ""
    day = datetime.fromtimestamp(max(times))
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"
