"""``model.dtype: auto`` in a recipe: what it means, and in which dtype the result is written."""

import runpy
from pathlib import Path

import pytest
import torch

from higgs_trainer.model.loading import load_checkpoint, load_trained
from higgs_trainer.model.weight_files import read_headers
from higgs_trainer.recipe.reading import read_recipe
from higgs_trainer.recipe.schema import Recipe
from higgs_trainer.run.train import train
from higgs_trainer.run.trainable import resolve_dtype

script = runpy.run_path(str(Path(__file__).resolve().parents[3] / "scripts" / "kill_and_resume.py"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model in float32 in "model" and in bfloat16 in "narrow", and a dataset in "prepared"."""
    folder = tmp_path_factory.mktemp("inputs")
    script["write_inputs"](folder, max_steps=3)
    narrow = load_checkpoint(folder / "model", dtype="bfloat16")
    narrow.model.save_pretrained(folder / "narrow")
    narrow.tokenizer.save_pretrained(folder / "narrow")
    (folder / "narrow" / "codec").symlink_to(folder / "model" / "codec")
    return folder


def build_recipe(
    folder: Path, output_dir: Path, *, model: str = "narrow", adapted: bool = False, **training
) -> Recipe:
    return Recipe(
        model={"name_or_path": str(folder / model)},
        data={"train": str(folder / "prepared")},
        adapter={"r": 2, "modules_to_save": ["audio_lm_head"]} if adapted else None,
        training={
            "output_dir": str(output_dir),
            "max_steps": 2,
            "use_cpu": True,
            "save_steps": 1,
            "save_strategy": "steps",
            "disable_tqdm": True,
            **training,
        },
    )


@pytest.mark.parametrize(
    ("model", "adapted", "expected"),
    [
        ("narrow", True, "bfloat16"),
        ("narrow", False, "float32"),
        ("model", True, "float32"),
        ("model", False, "float32"),
        ("is_not_there", True, "float32"),
    ],
)
def test_auto_is_the_dtype_of_the_files_for_an_adapter_and_float32_for_full_fine_tuning(
    folder, tmp_path, model, adapted, expected
):
    recipe = build_recipe(folder, tmp_path, model=model, adapted=adapted)
    assert (recipe.model.dtype, resolve_dtype(recipe).model.dtype) == ("auto", expected)


def list_stored_dtypes(file: Path) -> set[str]:
    return {tensor.dtype for tensor in read_headers([file]).values()}


def test_a_fully_trained_model_is_written_in_the_dtype_of_its_base_and_its_checkpoints_in_float32(
    folder, tmp_path, capsys
):
    summary = train(build_recipe(folder, tmp_path / "run"))
    assert "The weights are written in bfloat16" in capsys.readouterr().out
    assert list_stored_dtypes(tmp_path / "run" / "model.safetensors") == {"BF16"}
    assert list_stored_dtypes(tmp_path / "run" / "checkpoint-2" / "model.safetensors") == {"F32"}
    assert load_trained(tmp_path / "run").model.dtype == torch.bfloat16
    # What Python code goes on with is what was written.
    assert summary.model.checkpoint.model.dtype == torch.bfloat16
    assert read_recipe(tmp_path / "run" / "recipe.yaml").model.dtype == "float32"


def test_an_adapter_is_written_in_float32_and_a_run_with_auto_is_resumed(folder, tmp_path):
    train(build_recipe(folder, tmp_path / "run", adapted=True, save_total_limit=None))
    assert list_stored_dtypes(tmp_path / "run" / "adapter_model.safetensors") == {"F32"}
    assert read_recipe(tmp_path / "run" / "recipe.yaml").model.dtype == "bfloat16"
    start = str(tmp_path / "run" / "checkpoint-1")
    recipe = build_recipe(folder, tmp_path / "again", adapted=True, resume_from_checkpoint=start)
    assert train(recipe).num_steps == 1
