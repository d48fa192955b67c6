"""A plan of packs that would take hours is refused, and only such a plan."""

from pathlib import Path

import pytest
from transformers import TrainingArguments

from higgs_trainer.dataset.packing import PlannedExamples
from higgs_trainer.errors import RecipeError
from higgs_trainer.training import datasets
from higgs_trainer.training.datasets import LoadedSets, plan_training


def plan(folder: Path, monkeypatch: pytest.MonkeyPatch, *, weight: float, max_steps: int) -> PlannedExamples:
    """Plan 4 examples of 10 tokens, one in each pack, in an epoch of 4 * ``weight`` packs."""
    monkeypatch.setattr(datasets, "MOST_PLANNED_DRAWS", 60)
    monkeypatch.setattr(datasets, "measure_tokens", lambda examples, **_: [10] * len(examples))
    loaded = LoadedSets(None, (4,), ("hash",), [None] * 4)  # type: ignore[arg-type]
    arguments = TrainingArguments(str(folder), max_steps=max_steps, use_cpu=True, report_to="none")
    return plan_training(loaded, arguments, num_codes=8, weights=[weight], tokens_per_pack=10)


def test_a_mixture_with_too_many_draws_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An epoch has 6 packs, so the run needs at most 1 + 54 / 6 = 10 epochs of 6 examples.
    plan(tmp_path, monkeypatch, weight=1.5, max_steps=54)
    with pytest.raises(
        RecipeError, match=r"up to 11 epochs of 6 examples .* more than 60 examples.*whole number"
    ):
        plan(tmp_path, monkeypatch, weight=1.5, max_steps=55)


def test_epochs_that_draw_the_same_examples_are_not_planned_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan(tmp_path, monkeypatch, weight=2.0, max_steps=10**6)
