"""Read run folders part by part.

A folder may be unfinished, old, or damaged, so each part is either a value or a note that says why it is missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from higgs_trainer.errors import UserError
from higgs_trainer.evaluation.evaluation_folder import JudgedSets
from higgs_trainer.recipe.yaml_file import WrongYAML, parse_yaml
from higgs_trainer.report.judged_sets import read_judged_sets
from higgs_trainer.report.logs import MOST_STATE_BYTES, read_logs
from higgs_trainer.report.part import Part, hide_folder_of, read_object, read_text
from higgs_trainer.report.thinning import Columns
from higgs_trainer.run_folder import (
    DATA_SUMMARY_FILE,
    ENVIRONMENT_FILE,
    GUARD_REPORT_FILE,
    METRICS_FILE,
    PARAMETERS_FILE,
    RECIPE_FILE,
    SIGNS_OF_A_RUN,
    TRAINER_STATE_FILE,
    find_runs,
    is_run,
)
from higgs_trainer.unfinished_runs import restore_run

# More colours could not be distinguished.
MOST_RUNS = 6

WRITTEN_BY_TRAINING = "training writes it"
WRITTEN_AT_THE_END = "training writes it at the end"


@dataclass(frozen=True)
class RunContents:
    """The parts of a run folder.

    Attributes:
        name: unique among the runs of a page.
        settings: the recipe's values, {} if it cannot be parsed.
        datasets: the summaries of the datasets by role, "training" first.
        best_step: the step whose weights are the result, if that may not be the last one.
    """

    name: str
    folder: Path
    logs: Part[Columns]
    figures: Part[dict[str, Any]]
    evaluation: Part[JudgedSets]
    guard: Part[dict[str, Any]]
    recipe: Part[str]
    settings: dict[str, Any]
    parameters: Part[dict[str, Any]]
    environment: Part[dict[str, Any]]
    datasets: dict[str, Part[dict[str, Any]]]
    best_step: int | None


def read_runs(folders: Sequence[str | Path]) -> list[RunContents]:
    """Read each run folder.

    Raises:
        UserError: a folder is not a run folder, a folder is given twice, or there are more than `MOST_RUNS`.
    """
    paths = [Path(folder) for folder in folders]
    resolved = [path.resolve() for path in paths]
    for path in paths:
        restore_run(path)
        if not path.is_dir():
            raise UserError(f"{path} is not a folder; give the output folder of a run")
        if not is_run(path):
            raise UserError(_explain_no_run(path))
        if resolved.count(path.resolve()) > 1:
            raise UserError(f"{path} is given twice; give each run once")
    if len(paths) > MOST_RUNS:
        raise UserError(
            f"{len(paths)} runs are too many to be distinguished by colour; give at most {MOST_RUNS}"
        )
    return [_read_run(path, name) for path, name in zip(paths, _choose_names(resolved), strict=True)]


def _explain_no_run(folder: Path) -> str:
    """Build the message for a folder that is not a run folder. It names the run folders inside it, if there are any."""
    inside = find_runs(folder)
    if len(inside) == 1:
        return f"{folder} is not a run folder; {inside[0]} is one: higgs-trainer report {inside[0]}"
    if inside:
        several = ", ".join(map(str, inside))
        return f"{folder} is not a run folder, but contains several: {several}; give one or more of them"
    return (
        f"{folder} is not a run folder (it holds none of {', '.join(SIGNS_OF_A_RUN)}); "
        "give the output folder of a training run"
    )


def _choose_names(folders: list[Path]) -> list[str]:
    """Name each folder by its last path components: as few of them as make all names different."""
    for length in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def _read_run(folder: Path, name: str) -> RunContents:
    # An absolute path can be found in the text of an error, and left out of it.
    folder = folder.absolute()
    recipe = read_text(folder, RECIPE_FILE, otherwise=WRITTEN_BY_TRAINING)
    settings = _parse_settings(recipe.value or "")
    guard = read_object(folder, GUARD_REPORT_FILE, otherwise=WRITTEN_AT_THE_END)
    return RunContents(
        name=name,
        folder=folder,
        logs=hide_folder_of(read_logs(folder), folder),
        figures=hide_folder_of(read_object(folder, METRICS_FILE, otherwise=WRITTEN_AT_THE_END), folder),
        evaluation=hide_folder_of(read_judged_sets(folder), folder),
        guard=hide_folder_of(guard.then(_check_guard), folder),
        recipe=hide_folder_of(recipe, folder),
        settings=settings,
        parameters=hide_folder_of(
            read_object(folder, PARAMETERS_FILE, otherwise=WRITTEN_BY_TRAINING), folder
        ),
        environment=hide_folder_of(
            read_object(folder, ENVIRONMENT_FILE, otherwise=WRITTEN_BY_TRAINING), folder
        ),
        datasets={
            role: hide_folder_of(part, folder) for role, part in _read_datasets(folder, settings).items()
        },
        best_step=_find_best_step(folder, settings),
    )


def _parse_settings(recipe: str) -> dict[str, Any]:
    """Return the recipe's values, or {} if it is not valid YAML. The page shows its text in any case."""
    try:
        values = parse_yaml(recipe)
    except WrongYAML:
        return {}
    return values if isinstance(values, dict) else {}


def _check_guard(report: dict[str, Any]) -> Part[dict[str, Any]]:
    """Return a report of the guard, unless it has another form than the page shows."""
    layers, leaks = report.get("layers", []), report.get("leaks", [])
    is_right = (
        all(isinstance(report.get(key, ""), str) for key in ("verdict", "contract"))
        and isinstance(report.get("model_call", {}), dict)
        and _are_objects(
            layers, {"layer": int, "name": str, "on": bool, "calls": int, "seen": dict, "diverted": dict}
        )
        and _are_objects(leaks, {"key": str, "layer": int, "source": str, "count": int})
        and all(isinstance(leak.get("remedy", ""), str) for leak in leaks)
    )
    return Part(report) if is_right else Part(None, f"{GUARD_REPORT_FILE} is not a report of label-guard.")


def _are_objects(values: Any, fields: dict[str, type]) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in fields.items())
        for value in values
    )


def _find_best_step(folder: Path, settings: dict[str, Any]) -> int | None:
    """Return the step whose weights are the result if ``load_best_model_at_end`` chose it."""
    if not find_setting(settings, "training", "load_best_model_at_end"):
        return None
    state = read_object(folder, TRAINER_STATE_FILE, otherwise=WRITTEN_AT_THE_END, most_bytes=MOST_STATE_BYTES)
    step = (state.value or {}).get("best_global_step")
    return step if isinstance(step, int) else None


def find_setting(settings: dict[str, Any], *keys: str) -> Any:
    """Return a value of the recipe, or None if it is not set."""
    value: Any = settings
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings with dotted names: {"training.seed": 1, ...}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _read_datasets(folder: Path, settings: dict[str, Any]) -> dict[str, Part[dict[str, Any]]]:
    """Read the summaries of the datasets, which are in the run folder. The datasets themselves may be anywhere."""
    summary = read_object(folder, DATA_SUMMARY_FILE, otherwise=WRITTEN_AT_THE_END)
    found = {}
    for role, key in (("training", "train"), ("held out", "eval")):
        if not find_setting(settings, "data", key):
            found[role] = Part[dict[str, Any]](None, f"The recipe does not set data.{key}.")
        elif summary.value is None:
            found[role] = Part[dict[str, Any]](None, summary.note)
        else:
            value = summary.value.get(key)
            is_summary = isinstance(value, dict)
            found[role] = Part(
                value if is_summary else None, "" if is_summary else f"{DATA_SUMMARY_FILE} lacks it."
            )
    return found
