"""Warn about evaluation data that is also training data, in `check` and once at the start of `train`."""

from collections.abc import Iterator

from higgs_trainer.dataset.overlap import Overlap, count_same_folders, find_overlap
from higgs_trainer.recipe.schema import DataRecipe
from higgs_trainer.run_folder import DataOverlap
from higgs_trainer.training.check_result import CheckResult
from higgs_trainer.training.datasets import LoadedSets

SAME_RECORDINGS = (
    "the evaluation measures what the model has memorized; take them out of data.train or data.eval"
)
SAME_TEXTS = "the model has seen these words; figures on them, above all the word error rate, are too good"


def find_data_overlap(data: DataRecipe, train_set: LoadedSets, held_out: LoadedSets | None) -> Overlap | None:
    """Compare the evaluation data of a recipe with its training data. Return None without evaluation data."""
    if held_out is None:
        return None
    same_folders = count_same_folders(
        [train.path for train in data.train],
        train_set.content_hashes,
        [held.path for held in data.eval],
        held_out.content_hashes,
    )
    return find_overlap(train_set.rows, held_out.rows, same_folders=same_folders)


def judge_overlap(overlap: Overlap | None) -> list[CheckResult]:
    """Return the results of two tests, which pass with a warning if there is an overlap."""
    if overlap is None:
        return []
    return [
        CheckResult(
            "evaluation recordings that are training data",
            passed=True,
            found=overlap.describe_recordings(),
            remedy=SAME_RECORDINGS,
            severity="serious" if overlap.recordings else "none",
        ),
        CheckResult(
            "evaluation texts that are training data",
            passed=True,
            found=overlap.describe_texts(),
            remedy=SAME_TEXTS,
            severity="warning" if overlap.texts else "none",
        ),
    ]


def describe_warnings(overlap: Overlap | None) -> Iterator[str]:
    """Yield a line for each kind of overlap. That about recordings cannot be overlooked."""
    for result in judge_overlap(overlap):
        line = f"{result.name}: {result.found}; {result.remedy}"
        if result.severity == "serious":
            yield f"{'!' * 20} WARNING {'!' * 20}\n{line}\n{'!' * 49}"
        elif result.severity == "warning":
            yield f"warning: {line}"


def count_overlap(overlap: Overlap | None) -> DataOverlap | None:
    """Return the counts for ``data_overlap.json``, or None without evaluation data."""
    if overlap is None:
        return None
    return {
        "eval_utterances": overlap.utterances,
        "same_folders": overlap.folders,
        "same_recordings": len(overlap.recordings),
        "same_texts": len(overlap.texts),
    }
