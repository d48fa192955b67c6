"""The judged sets of a run: clips and scores from its ``evaluation`` folder."""

from pathlib import Path

from higgs_trainer.errors import UserError
from higgs_trainer.evaluation.evaluation_folder import JudgedSets, read_evaluation
from higgs_trainer.report.part import Part
from higgs_trainer.run_folder import EVALUATION_FOLDER, FIGURES_FILE


def read_judged_sets(run: Path) -> Part[JudgedSets]:
    """Read the evaluation of a run, or say which command makes one."""
    try:
        found = read_evaluation(run)
    except UserError as error:
        return Part(None, str(error))
    if found is None:
        return Part(
            None,
            f"{EVALUATION_FOLDER}/{FIGURES_FILE} is not in {run}; "
            f"higgs-trainer evaluate {run.resolve().name} writes it.",
        )
    return Part(found, found.note)
