"""What judges said of a run: ``evaluation.json``, or what ``higgs-trainer evaluate`` left in ``evaluation/``."""

from pathlib import Path
from typing import Any

from higgs_trainer.report.part import AFTER, BEFORE, Part, read_lines, read_object
from higgs_trainer.run_folder import EVALUATION_FILE, EVALUATION_FOLDER, FIGURES_FILE, ROWS_FILE

BY_EVALUATE = "higgs-trainer evaluate BASE RUN -o RUN/evaluation judges before and after"


def read_evaluation(folder: Path, base: str | None) -> Part[dict[str, Any]]:
    """The sets of clips that were judged, in the form of ``evaluation_file.py``.

    In a comparison by ``evaluate``, the model of this folder is "after" and ``base``, from which it was trained,
    "before"; any other has its own name.
    """
    compared = folder / EVALUATION_FOLDER
    if not (compared / FIGURES_FILE).exists():
        return read_object(folder / EVALUATION_FILE, otherwise=BY_EVALUATE)
    figures = read_object(compared / FIGURES_FILE, otherwise=BY_EVALUATE)
    rows = read_lines(compared / ROWS_FILE, otherwise="its clips cannot be shown")
    return figures.then(lambda found: Part(_to_sets(found, rows.value or [], compared, base), rows.note))


def _to_sets(
    figures: dict[str, Any], rows: list[dict[str, Any]], compared: Path, base: str | None
) -> dict[str, Any]:
    models = figures.get("models")
    models = [model for model in models if isinstance(model, dict)] if isinstance(models, list) else []
    differences = figures.get("second_minus_first")
    sets = []
    for place, model in enumerate(models):
        scores = {key: value for key, value in model.items() if isinstance(value, dict)}
        if place == 1 and isinstance(differences, dict):
            for key, found in differences.items():
                if key in scores and isinstance(found, dict):
                    scores[key] = scores[key] | {"p": found.get("p")}
        clips = [
            _to_clip(row, compared)
            for row in rows
            if row.get("model") == model.get("model") and row.get("audio")
        ]
        sets.append(
            {"name": _name(str(model.get("model")), compared.parent, base), "scores": scores, "clips": clips}
        )
    return {"sets": sets}


def _to_clip(row: dict[str, Any], compared: Path) -> dict[str, Any]:
    """The row with its audio as a path from the run's folder, wherever ``evaluate`` was started."""
    audio = Path(str(row["audio"]))
    moved = compared.joinpath(*audio.parts[-2:])
    return row | {"audio": str((moved if moved.exists() else audio).absolute())}


def _name(model: str, run: Path, base: str | None) -> str:
    if Path(model).resolve() == run.resolve():
        return AFTER
    is_base = base is not None and (model == base or Path(model).resolve() == Path(base).resolve())
    return BEFORE if is_base else model
