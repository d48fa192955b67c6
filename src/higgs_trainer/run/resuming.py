"""Check that a resumed run is the run that wrote the checkpoint, and record the changes that the user allows.

`describe_run` says what decides the numbers of a run; each checkpoint holds it. `compare_recipe` and `compare_run`
refuse a resumed run that differs, with a list of the differences. ``resume_fields.py`` says which fields matter.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from higgs_trainer.errors import RecipeError
from higgs_trainer.files import read_json_object, write_json_lines
from higgs_trainer.model.model_files import fingerprint_model
from higgs_trainer.model.model_folder import find_folder
from higgs_trainer.recipe.schema import Recipe
from higgs_trainer.recipe.training_fields import FILES, SECRETS
from higgs_trainer.run.assembly import Run
from higgs_trainer.run.resume_fields import (
    LENGTH,
    OPTIONAL_SECTIONS,
    ORDER,
    find_reason_against,
    is_extension,
    list_differences,
)
from higgs_trainer.run_folder import (
    HISTORY_FILE,
    RESUME_FILE,
    RESUME_SCHEMA,
    TRAINER_STATE_FILE,
    Change,
    HistoryLine,
    ResumeRecord,
)
from higgs_trainer.training.environment import list_versions

PLACES = (
    "model.name_or_path",
    "model.codec",
    "data.train",
    "data.eval",
    "samples.ref_audio",
    "training.output_dir",
    "training.resume_from_checkpoint",
    *(f"training.{name}" for name in SECRETS),
)
"""Fields that are not stored: paths, for which hashes stand, and secrets."""


FACTS = (
    "data.train_content",
    "data.eval_content",
    "data.groups_per_epoch",
    "base_model.family",
    "base_model.fingerprint",
    "optimizer",
    "world_size",
    *(f"versions.{name}" for name in list_versions()),
)
"""The fields of a record that are not fields of the recipe."""


def describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return the fields of a recipe by their dotted names, as a JSON file holds them, without `PLACES`."""
    fields: dict[str, Any] = {}
    for section, values in recipe.model_dump(mode="json").items():
        if section in OPTIONAL_SECTIONS:
            fields[section] = None if values is None else "on"
        fields |= {f"{section}.{name}": value for name, value in (values or {}).items()}
    for name in FILES:
        fields[f"training.{name}"] = _read_settings(fields.get(f"training.{name}"))
    return {name: value for name, value in fields.items() if name not in PLACES}


def _read_settings(value: Any) -> Any:
    """Return the content of a JSON file of settings, for which a recipe may give the path."""
    if isinstance(value, str) and Path(value).is_file():
        return read_json_object(value)
    return value


def describe_run(recipe: Recipe, run: Run) -> ResumeRecord:
    """Describe what decides the numbers of a run."""
    trainer = run.trainer
    weights = [train.weight for train in recipe.data.train]
    return {
        "schema": RESUME_SCHEMA,
        "recipe": describe_recipe(recipe),
        "data": {
            "train_content": [
                content if weight == 1 else f"{content} x {weight:g}"
                for content, weight in zip(run.train_set.content_hashes, weights, strict=True)
            ],
            "eval_content": list(run.held_out.content_hashes) if run.held_out else [],
            "groups_per_epoch": len(trainer.train_dataset),
        },
        "base_model": {
            "family": trainer.family.name,
            "fingerprint": fingerprint_model(find_folder(recipe.model.name_or_path)),
        },
        "optimizer": None if trainer.optimizer is None else type(trainer.optimizer).__name__,
        "world_size": trainer.args.world_size * max(1, trainer.args.n_gpu),
        "versions": list_versions(),
    }


def list_fields(record: ResumeRecord) -> dict[str, Any]:
    """Return everything in a record by dotted names: the fields of the recipe, and the facts about the run."""
    fields = dict(record["recipe"])
    for section in ("data", "base_model", "versions"):
        values = cast(Mapping[str, Any], record[section])
        fields |= {f"{section}.{name}": value for name, value in values.items()}
    return fields | {"optimizer": record["optimizer"], "world_size": record["world_size"]}


def read_record(checkpoint: Path) -> ResumeRecord:
    """Read the record of a checkpoint.

    Raises:
        UserError: there is none, because an earlier version wrote the checkpoint, or it is damaged.
    """
    path = checkpoint / RESUME_FILE
    if not path.is_file():
        raise RecipeError(
            f"training.resume_from_checkpoint: {checkpoint} has no {RESUME_FILE}, so it cannot be seen whether this is "
            "the same run. Resume it with the version that wrote it, or start a new run."
        )
    record = read_json_object(path)
    sections = {"recipe": dict, "data": dict, "base_model": dict, "versions": dict}
    if record.get("schema") != RESUME_SCHEMA or not all(
        isinstance(record.get(name), kind) for name, kind in sections.items()
    ):
        raise RecipeError(
            f"training.resume_from_checkpoint: {path} is damaged or of another version. Resume from another checkpoint."
        )
    return cast(ResumeRecord, {"optimizer": None, "world_size": None, **record})


def compare_recipe(start: Path, recipe: Recipe, allowed: Collection[str]) -> None:
    """Compare the recipe with that of a checkpoint, before anything is loaded.

    Args:
        allowed: the fields that the user allows to change.

    Raises:
        RecipeError: lists all fields that differ without permission, or that cannot be changed.
    """
    _compare(start, read_record(start)["recipe"], describe_recipe(recipe), allowed)


def compare_run(start: Path, record: ResumeRecord, allowed: Collection[str]) -> list[Change]:
    """Compare a whole run with that of a checkpoint, and return the changes, which are allowed or extend the run.

    Raises:
        RecipeError: lists all fields that differ without permission, or that cannot be changed.
    """
    return _compare(start, list_fields(read_record(start)), list_fields(record), allowed)


def check_allowed(names: Iterable[str], recipe: Recipe) -> frozenset[str]:
    """Return the full names of the fields that the user allows to change.

    Raises:
        RecipeError: there is no such field, or the recipe resumes nothing, so that the permission would have no effect.
    """
    names = list(names)
    if names and not recipe.training.resume_from_checkpoint:
        raise RecipeError(
            f"--allow-changed {names[0]}: this run resumes nothing. Add --resume_from_checkpoint true, or remove "
            "the option."
        )
    known = [*describe_recipe(recipe), *FACTS]
    found = set()
    for name in names:
        matches = [field for field in known if field == name or field.endswith(f".{name}")]
        if name not in known and len(matches) != 1:
            near = matches or get_close_matches(name, known, n=3)
            raise RecipeError(
                f"--allow-changed {name}: no such field. Name each field as the list of differences does"
                + (f", such as {' or '.join(near)}." if near else ".")
            )
        found.add(name if name in known else matches[0])
    return frozenset(found)


def _compare(
    start: Path, was: Mapping[str, Any], now: Mapping[str, Any], allowed: Collection[str]
) -> list[Change]:
    changes: list[Change] = [
        {"field": field, "was": old, "now": new} for field, old, new in list_differences(was, now)
    ]
    if any(change["field"] in ORDER - {"data.groups_per_epoch"} for change in changes):
        # It follows from the other difference.
        changes = [change for change in changes if change["field"] != "data.groups_per_epoch"]
    reasons = {change["field"]: find_reason_against(change["field"], was, now) for change in changes}
    impossible = [change for change in changes if reasons[change["field"]]]
    refused = [
        change
        for change in changes
        if change not in impossible
        and change["field"] not in allowed
        and not is_extension(change["field"], change["was"], change["now"], now)
    ]
    if impossible or refused:
        lines = [f"{start} cannot be resumed, because this would be another run:"]
        lines += [f"  {_show(change)}" for change in refused]
        lines += [
            f"  {_show(change)}. This cannot be changed in a resumed run: {reasons[change['field']]}."
            for change in impossible
        ]
        lines.append("Undo the changes, or start a new run in another folder.")
        if refused:
            names = " ".join(f"--allow-changed {change['field']}" for change in refused)
            lines.append(f"To accept a change from this checkpoint on, name its field: {names}")
        raise RecipeError("\n".join(lines))
    return changes


def _show(change: Change) -> str:
    was, now = (json.dumps(value, ensure_ascii=False) for value in (change["was"], change["now"]))
    return f"{change['field']}: {was} -> {now}"


def describe_changes(start: Path, changes: Iterable[Change]) -> list[str]:
    """Return a line for each change of a resumed run, and what it means for the schedule and the order."""
    changes = list(changes)
    lines = [f"resumed from {start.name} with a change: {_show(change)}" for change in changes]
    fields = {change["field"] for change in changes}
    if fields & {*LENGTH}:
        lines.append(
            "The learning-rate schedule is computed for the new number of steps, as if the run had been planned with "
            "it; the steps that are done keep their learning rates."
        )
    if fields & ORDER:
        lines.append(
            "The order of the examples is planned again. The run continues at the same step of the new plan, so that "
            "some examples of this epoch may be seen twice and others not at all."
        )
    return lines


def write_history(output_dir: Path, start: Path | None, changes: list[Change]) -> None:
    """Add the changes of a resumed run to the history in its folder. Lines about later steps are removed."""
    path = output_dir / HISTORY_FILE
    if start is None:
        path.unlink(missing_ok=True)
        return
    step = int(read_json_object(start / TRAINER_STATE_FILE)["global_step"])
    lines = _read_history(path) if path.is_file() else []
    kept = [line for line in lines if line["step"] < step]
    if changes:
        kept.append({"step": step, "changes": changes})
    if kept != lines:
        write_json_lines(path, kept)


def _read_history(path: Path) -> list[HistoryLine]:
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if all(type(line["step"]) is int for line in lines):
            return lines
        reason = "a step is no number"
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        reason = str(error)
    raise RecipeError(
        f"{path} is damaged ({reason}). Copy it from a backup, or rename it: a new one is written."
    )
