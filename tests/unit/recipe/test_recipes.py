"""Every shipped recipe can be read; a misspelt key in one would only be met by a user."""

from pathlib import Path

import pytest

from higgs_trainer.recipe.schema import read_recipe

ROOT = Path(__file__).resolve().parents[3]
RECIPES = [
    *ROOT.glob("recipes/*.yaml"),
    *ROOT.glob("packages/higgs-trainer-demo/src/higgs_trainer_demo/recipe*.yaml"),
]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_recipe_is_read(path):
    assert read_recipe(path, []).training.output_dir.is_absolute()


def test_there_are_recipes():
    assert {"single_speaker.yaml", "zero_shot_cloning.yaml"} <= {path.name for path in RECIPES}
