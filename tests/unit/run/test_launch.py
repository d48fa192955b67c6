"""How a run was launched is checked before anything is loaded."""

from pathlib import Path
from typing import Any

import pytest
from accelerate import DistributedType
from transformers import TrainingArguments

from higgs_trainer.distributed import Processes
from higgs_trainer.errors import RecipeError
from higgs_trainer.recipe.training_section import TrainingRecipe
from higgs_trainer.run import launch
from higgs_trainer.run.arguments import join_run


def check(tmp_path: Path, *, builds_optimizer: bool = False, **values: Any) -> None:
    recipe = TrainingRecipe(output_dir=str(tmp_path), **values)
    arguments = TrainingArguments(str(tmp_path), use_cpu=True)
    launch.check_sharding(recipe, arguments, builds_optimizer=builds_optimizer)


@pytest.fixture
def sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")


def test_a_launch_for_deepspeed_is_refused_before_the_processes_join(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match=r"asks for DeepSpeed: .* Spread the model with FSDP2"):
        join_run(TrainingRecipe(output_dir=str(tmp_path)))


def test_what_fsdp_cannot_do_is_refused(tmp_path: Path, sharded: None) -> None:
    check(tmp_path)
    with pytest.raises(RecipeError, match=r"training\.save_only_model: under FSDP"):
        check(tmp_path, save_only_model=True)
    with pytest.raises(RecipeError, match="build_optimizer: FSDP builds"):
        check(tmp_path, builds_optimizer=True)


def test_the_same_is_accepted_without_fsdp(tmp_path: Path) -> None:
    check(tmp_path, save_only_model=True, builds_optimizer=True)


def test_fsdp_1_is_refused(tmp_path: Path, sharded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(RecipeError, match="FSDP 1 is refused"):
        check(tmp_path)


def test_fsdp_on_cpus_is_refused_because_accelerate_would_use_ddp(
    tmp_path: Path, sharded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "find_processes", lambda: Processes(0, 2))
    kinds = iter([DistributedType.MULTI_CPU, DistributedType.MULTI_GPU])
    monkeypatch.setattr(launch, "find_kind", lambda: next(kinds))
    with pytest.raises(RecipeError, match="on CPUs, accelerate would silently use DDP"):
        check(tmp_path)
    check(tmp_path)
