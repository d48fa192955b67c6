"""The JSON schema accepts what the reader accepts and marks mistakes, judged by an independent implementation."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from higgs_trainer.cli import main
from higgs_trainer.recipe.editor_schema import build_json_schema
from higgs_trainer.recipe.reading import read_recipe, write_recipe
from higgs_trainer.recipe.schema import Recipe
from higgs_trainer.recipe.shipped import find_recipes
from higgs_trainer.recipe.training_fields import REFUSED
from higgs_trainer.recipe.yaml_file import read_yaml


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return build_json_schema()


SECTIONS: dict[str, Any] = {
    "model": {"name_or_path": "a/b"},
    "data": {"train": ["a", {"path": "b", "weight": 2}], "eval": "c"},
    "training": {
        "output_dir": "o",
        "learning_rate": 1e-4,
        "torch_compile": True,
        "fsdp_config": {"version": 2},
    },
    "adapter": {"target_modules": ["q_proj"], "r": 3},
}


def test_the_schema_is_one(schema: dict[str, Any]) -> None:
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_a_recipe_fits(schema: dict[str, Any], tmp_path: Path) -> None:
    validator = Draft202012Validator(schema)
    assert [error.message for error in validator.iter_errors(SECTIONS)] == []
    write_recipe(Recipe.model_validate(SECTIONS), tmp_path / "written.yaml")
    assert [error.message for error in validator.iter_errors(read_yaml(tmp_path / "written.yaml"))] == []


@pytest.mark.parametrize("name", [name for name in find_recipes() if "/" not in name])
def test_the_shipped_recipes_fit(schema: dict[str, Any], name: str) -> None:
    path = find_recipes()[name]
    assert read_recipe(path)
    assert [error.message for error in Draft202012Validator(schema).iter_errors(read_yaml(path))] == []


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("training", "learning_rat", 1),
        ("training", "learning_rate", "fast"),
        ("training", "learning_rate", -1),
        ("training", "gradient_accumulation_steps", 0),
        ("training", "eval_strategy", "step"),
        ("training", "torch_compile", 3),
        ("training", "dataloader_drop_last", True),
        ("training", "extra_arguments", {}),
        ("data", "train", [{"path": "a", "wieght": 1}]),
        ("data", "train", None),
        ("adapter", "r", 0),
    ],
)
def test_a_mistake_does_not_fit(schema: dict[str, Any], section: str, field: str, value: Any) -> None:
    wrong = copy.deepcopy(SECTIONS)
    wrong[section][field] = value
    assert list(Draft202012Validator(schema).iter_errors(wrong))


def test_every_field_has_a_description(schema: dict[str, Any]) -> None:
    for name, definition in schema["$defs"].items():
        for field, described in definition["properties"].items():
            assert described.get("description"), (name, field)
            assert field not in REFUSED


def test_the_command_prints_it(schema: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["recipe-schema"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(schema))
