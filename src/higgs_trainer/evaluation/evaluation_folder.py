"""Write and read an evaluation folder, ``figures.json`` and ``rows.jsonl``. ``run_folder.py`` describes both files.

`evaluate` and the demo write it. The report page, the model card and `merge` read it, all of them through this module.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from higgs_trainer.errors import UserError
from higgs_trainer.files import check_inside, write_json, write_json_lines
from higgs_trainer.run_folder import EVALUATION_FOLDER, EVALUATION_SCHEMA, FIGURES_FILE, ROWS_FILE

if TYPE_CHECKING:
    # The report page reads evaluations without the judges, whose libraries take seconds to import.
    from higgs_trainer.evaluation.judging import JudgedClip

NO_FIGURES = ("model", "role", "clips", "audio_seconds_per_second", "by_language")
"""Fields of a model in ``figures.json`` that are not figures."""

OF_LANGUAGE = re.compile(r"(\w+) \((\w+)\)")

MOST_FIGURES_BYTES, MOST_ROWS_BYTES = 1_000_000, 100_000_000

REMEDY = "Evaluate again, or remove the file."


@dataclass(frozen=True)
class Score:
    """A figure with its 95% interval, and the ``p`` of the paired test against the first set if there was one.

    Attributes:
        num_compared: over how many utterances the test was made. None: the file does not say.
    """

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    num_compared: int | None = None


@dataclass(frozen=True)
class HeardClip:
    """A judged clip as the report page shows it. ``audio`` is None if the clip is in no file."""

    text: str
    audio: Path | None
    transcript: str | None
    stopped: bool
    is_right: bool | None


@dataclass(frozen=True)
class JudgedSet:
    """The scores and clips of one model, or of recordings. ``name``: its role, "before" or "after", or its own name."""

    name: str
    scores: Mapping[str, Score]
    num_clips: int
    clips: Sequence[HeardClip]


@dataclass(frozen=True)
class JudgedSets:
    """The content of an evaluation folder. ``note``: a remark on the figures, such as that they are of the adapter."""

    sets: Sequence[JudgedSet]
    note: str


def name_of_language(name: str, language: str) -> str:
    """Return the name of a score that is of one language only: "wer (nl)"."""
    return f"{name} ({language})"


def split_language(name: str) -> tuple[str, str | None]:
    """Return the name of a score and, if it is of one language only, the language."""
    found = OF_LANGUAGE.fullmatch(name)
    return (name, None) if found is None else (found[1], found[2])


def write_evaluation(folder: Path, report: Mapping[str, Any], rows: Sequence["JudgedClip"]) -> None:
    """Write the rows, then the figures. The paths of clips become relative to ``folder``, so that it can be moved."""
    lines = []
    for row in rows:
        audio = None if row.audio is None else Path(os.path.relpath(row.audio, folder)).as_posix()
        lines.append(asdict(row) | {"audio": audio})
    write_json_lines(folder / ROWS_FILE, lines)
    write_json(folder / FIGURES_FILE, report)


def add_note(run: Path, note: str) -> None:
    """Add a note to the figures in a run folder, if it has any."""
    folder = run / EVALUATION_FOLDER
    if (folder / FIGURES_FILE).is_file():
        write_json(folder / FIGURES_FILE, _read_report(folder / FIGURES_FILE) | {"note": note})


def read_evaluation(run: Path) -> JudgedSets | None:
    """Read the evaluation in a run folder. Return None if there is none.

    ``rows.jsonl`` may be absent: then the sets have no clips.

    Raises:
        UserError: a file is damaged or has another form.
    """
    folder = run / EVALUATION_FOLDER
    if not (folder / FIGURES_FILE).exists():
        return None
    check_inside(run, folder / FIGURES_FILE, most_bytes=MOST_FIGURES_BYTES)
    report = _read_report(folder / FIGURES_FILE)
    rows = []
    if (folder / ROWS_FILE).exists():
        check_inside(run, folder / ROWS_FILE, most_bytes=MOST_ROWS_BYTES)
        rows = _read_rows(folder / ROWS_FILE)
    differences = report.get("second_minus_first") or {}
    sets = []
    for place, model in enumerate(report["models"]):
        clips = [_read_clip(row, folder) for row in rows if row.get("model") == model["model"]]
        scores = {
            name: _read_score(value, differences.get(name) if place == 1 else None)
            for name, value in model.items()
            if name not in NO_FIGURES and value is not None
        }
        scores |= _read_languages(model.get("by_language"))
        sets.append(
            JudgedSet(model.get("role") or model["model"], scores, model.get("clips", len(clips)), clips)
        )
    return JudgedSets(sets, str(report.get("note") or ""))


def _read_report(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}). {REMEDY}") from error
    if not isinstance(report, dict) or report.get("schema") != EVALUATION_SCHEMA:
        raise UserError(f'{path} is not an evaluation: "schema" must be "{EVALUATION_SCHEMA}". {REMEDY}')
    models, differences = report.get("models"), report.get("second_minus_first")
    if not isinstance(models, list) or not all(
        isinstance(model, dict) and isinstance(model.get("model"), str) for model in models
    ):
        raise UserError(f'{path}: "models" must be a list of objects, each with the name "model". {REMEDY}')
    if differences is not None and not isinstance(differences, dict):
        raise UserError(f'{path}: "second_minus_first" must be an object or null. {REMEDY}')
    problems = [
        f'"{name}" of "{model["model"]}"'
        for model in models
        for name, value in model.items()
        if name not in NO_FIGURES and value is not None and not _is_figure(value)
    ]
    if problems:
        raise UserError(
            f'{path}: {", ".join(problems)} must be an object with a number "value", or null. {REMEDY}'
        )
    return report


def _read_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, start=1):
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise UserError(f'{path}:{number}: a row must be an object with the string "text". {REMEDY}')
            rows.append(row)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}). {REMEDY}") from error
    return rows


def _is_figure(value: Any) -> bool:
    return isinstance(value, dict) and _is_number(value.get("value"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_score(figure: Mapping[str, Any], difference: Any) -> Score:
    low, high = (figure.get(name) if _is_number(figure.get(name)) else None for name in ("low", "high"))
    p, n = (difference.get(name) if isinstance(difference, dict) else None for name in ("p", "n"))
    return Score(
        float(figure["value"]), low, high, p if _is_number(p) else None, n if isinstance(n, int) else None
    )


def _read_languages(by_language: Any) -> dict[str, Score]:
    """Return the scores of each language, under names such as "wer (nl)"."""
    if not isinstance(by_language, dict):
        return {}
    return {
        name_of_language(name, language): _read_score(value, None)
        for language, figures in by_language.items()
        if isinstance(figures, dict)
        for name, value in figures.items()
        if _is_figure(value)
    }


def _read_clip(row: Mapping[str, Any], folder: Path) -> HeardClip:
    audio, transcript, errors = row.get("audio"), row.get("transcript"), row.get("word_errors")
    return HeardClip(
        text=row["text"],
        audio=folder / audio if isinstance(audio, str) and audio else None,
        transcript=transcript if isinstance(transcript, str) else None,
        stopped=bool(row.get("stopped", True)),
        is_right=errors == 0 if isinstance(errors, int) else None,
    )
