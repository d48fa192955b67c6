"""The disk must have room for the checkpoints of a run, which is checked before the model is loaded."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from higgs_trainer.errors import RecipeError
from higgs_trainer.recipe.schema import Recipe
from higgs_trainer.run import disk_space
from higgs_trainer.run.disk_space import CheckpointSizes, check_disk_space, estimate_sizes

TRAINED, FROZEN = 7_000, 11_000


def build_model() -> nn.Module:
    with torch.device("meta"):
        model = nn.ModuleList([nn.Linear(TRAINED, 1, bias=False), nn.Linear(FROZEN, 1, bias=False)])
    model[1].requires_grad_(False)
    return model


def build_recipe(tmp_path: Path, *, adapter: dict[str, Any] | None = None, **training: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"name_or_path": "a/b"},
            "data": {"train": "t", "eval": "e"},
            "adapter": adapter,
            "training": {"output_dir": str(tmp_path / "runs" / "one"), **training},
        }
    )


def estimate(tmp_path: Path, *, batches: int = 50, **values: Any) -> CheckpointSizes:
    recipe = build_recipe(tmp_path, **values)
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=1)
    return estimate_sizes(recipe, arguments, build_model(), batches)


def test_a_checkpoint_has_weights_in_float32_and_two_moments_of_the_trained_ones(tmp_path: Path) -> None:
    assert estimate(tmp_path).checkpoint == 12 * TRAINED + 4 * FROZEN
    assert estimate(tmp_path, adapter={}).checkpoint == 12 * TRAINED
    assert estimate(tmp_path, adapter={}, optim="adamw_8bit").checkpoint == 6 * TRAINED
    assert estimate(tmp_path, adapter={}, save_only_model=True).checkpoint == 4 * TRAINED


def test_the_result_of_full_fine_tuning_may_be_bfloat16(tmp_path: Path) -> None:
    assert estimate(tmp_path).result == 2 * (TRAINED + FROZEN)
    assert estimate(tmp_path, adapter={}).result == 4 * TRAINED


BEST = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "eval_strategy": "epoch"}
KEPT = {
    "the limit": ({"num_train_epochs": 9, "save_total_limit": 3}, 3),
    "fewer saves than the limit": ({"num_train_epochs": 2, "save_total_limit": 3}, 2),
    "no limit": ({"num_train_epochs": 9, "save_total_limit": None}, 9),
    "no limit, by steps": (
        {"max_steps": 100, "save_strategy": "steps", "save_steps": 20, "save_total_limit": None},
        6,
    ),
    "the best one as well": ({"num_train_epochs": 9, "save_total_limit": 1, **BEST}, 2),
}


@pytest.mark.parametrize(("values", "kept"), KEPT.values(), ids=KEPT)
def test_so_many_checkpoints_are_kept(tmp_path: Path, values: dict[str, Any], kept: int) -> None:
    assert estimate(tmp_path, **values).kept == kept


def set_free(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: SimpleNamespace(free=int(free)))


def test_one_more_exists_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = CheckpointSizes(checkpoint=64 * 10**9, kept=2, result=11 * 10**9)
    assert sizes.most == 192 * 10**9
    recipe = build_recipe(tmp_path)
    set_free(monkeypatch, 192e9)
    line = check_disk_space(recipe, sizes)
    assert line is not None
    assert "2 checkpoints of 64.0 GB" in line
    assert "192.0 GB on the disk" in line
    set_free(monkeypatch, 191.9e9)
    with pytest.raises(
        RecipeError,
        match=r"has 191\.9 GB free, but the run needs 192\.0 GB.*lower training\.save_total_limit \(2\)",
    ):
        check_disk_space(recipe, sizes)


def test_the_result_needs_room_next_to_the_checkpoints() -> None:
    assert CheckpointSizes(checkpoint=10, kept=2, result=15).most == 35


def test_checkpoints_of_a_resumed_run_are_there_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = CheckpointSizes(checkpoint=1000, kept=1, result=0)
    checkpoint = tmp_path / "runs" / "one" / "checkpoint-5" / "optimizer_0"
    checkpoint.mkdir(parents=True)
    (checkpoint / "__0_0.distcp").write_bytes(bytes(900))
    set_free(monkeypatch, 1100)
    assert check_disk_space(build_recipe(tmp_path, resume_from_checkpoint=True), sizes) is None
    with pytest.raises(RecipeError, match="the run needs"):
        check_disk_space(build_recipe(tmp_path), sizes)
