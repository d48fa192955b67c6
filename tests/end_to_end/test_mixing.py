"""Training on several prepared folders with weights, from the recipe to the weights."""

import json
import runpy
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from higgs_trainer import read_recipe, train
from higgs_trainer.errors import RecipeError
from higgs_trainer.run.assembly import build_run

script = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "kill_and_resume.py"))


class StopAt(TrainerCallback):
    """Stop the run after a step, as a machine that is taken away does after a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_training_stop = state.global_step >= self.step


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that mixes two copies of the same eleven clips: every clip of one twice, half of the other."""
    folder = tmp_path_factory.mktemp("mixing")
    path: Path = script["write_inputs"](folder, max_steps=8)
    shutil.copytree(folder / "prepared", folder / "other")
    yaml = YAML()
    sections = yaml.load(path)
    sections["data"]["train"] = [{"path": "prepared", "weight": 2.0}, {"path": "other", "weight": 0.5}]
    yaml.dump(sections, path)
    return path


def read_losses(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def test_an_epoch_holds_what_the_weights_say(recipe: Path) -> None:
    run = build_run(read_recipe(recipe))
    planned = run.trainer.train_dataset
    assert run.train_set.sizes == (11, 11)
    for epoch in range(2):
        planned.set_epoch(epoch)
        seen = Counter(i for group in planned.groups for i in group)
        assert [seen[i] for i in range(11)] == [2] * 11
        assert sum(seen[i] for i in range(11, 22)) == round(11 * 0.5)


def test_a_resumed_run_draws_what_an_undisturbed_one_draws(recipe: Path, tmp_path: Path) -> None:
    calm, resumed = tmp_path / "calm", tmp_path / "resumed"
    train(read_recipe(recipe, ["--output_dir", str(calm)]))
    train(read_recipe(recipe, ["--output_dir", str(resumed)]), callbacks=[StopAt(5)])
    assert read_losses(resumed)[-1][0] == 5
    train(read_recipe(recipe, ["--output_dir", str(resumed), "--resume_from_checkpoint", "true"]))
    assert read_losses(resumed) == read_losses(calm)
    weights = "adapter_model.safetensors"
    assert (resumed / weights).read_bytes() == (calm / weights).read_bytes()


def test_a_weight_that_draws_nothing_is_refused(recipe: Path) -> None:
    text = recipe.read_text().replace("0.5", "0.01")
    low = recipe.with_name("low.yaml")
    low.write_text(text)
    with pytest.raises(RecipeError, match=r"data\.train: set 2 has 11 examples and weight 0\.01"):
        build_run(read_recipe(low))
