"""QLoRA and optimizers of 8 bits, with the real bitsandbytes on the CPU."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from higgs_trainer.audio.codec import load_codec
from higgs_trainer.demo.blank_model import write_blank_model
from higgs_trainer.model.loading import load_checkpoint, load_trained
from higgs_trainer.model.weight_files import read_tensors
from higgs_trainer.recipe.schema import Recipe
from higgs_trainer.run.train import train
from higgs_trainer.sharing.merging import merge_adapter

script = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "kill_and_resume.py"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model in "model", whose rows can be cut into blocks of 64 weights, and a dataset in "prepared"."""
    folder = tmp_path_factory.mktemp("inputs")
    script["write_inputs"](folder, max_steps=3)
    codec = load_codec(folder / "model" / "codec")
    write_blank_model(
        folder / "wide", codec, seed=0, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=2
    )
    return folder


def build_recipe(folder: Path, output_dir: Path, *, quantization: str | None = "nf4", **training) -> Recipe:
    return Recipe(
        model={"name_or_path": str(folder / "wide"), "quantization": quantization},
        data={"train": str(folder / "prepared"), "eval": str(folder / "prepared")},
        adapter={"r": 2, "lora_alpha": 32},
        training={
            "output_dir": str(output_dir),
            "max_steps": 2,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "use_cpu": True,
            "disable_tqdm": True,
            **training,
        },
    )


def list_losses(run: Path) -> list[float]:
    entries = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [entry["loss"] for entry in entries if "loss" in entry]


def test_an_adapter_is_trained_on_4_bits_saved_and_merged(folder, tmp_path):
    summary = train(build_recipe(folder, tmp_path / "run", optim="adamw_8bit"))
    weights = summary.model.checkpoint.model.state_dict()
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    assert weights[f"{layer}.base_layer.weight"].dtype == torch.uint8
    # NF4 rounds the weights, so the loss is another one, but close.
    train(build_recipe(folder, tmp_path / "whole", quantization=None))
    quantized, whole = list_losses(tmp_path / "run"), list_losses(tmp_path / "whole")
    assert quantized[0] != whole[0]
    assert quantized[0] == pytest.approx(whole[0], rel=0.02)
    assert quantized[1] < quantized[0]

    adapter = dict(read_tensors(tmp_path / "run" / "adapter_model.safetensors"))
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    assert all(tensor.any() for tensor in adapter.values())
    merge_adapter(tmp_path / "run", tmp_path / "merged")
    base, merged = (load_checkpoint(tmp_path / one).model.state_dict() for one in (folder / "wide", "merged"))
    key = "model.layers.0.self_attn.q_proj.weight"
    a, b = (adapter[f"{layer}.lora_{part}.weight"] for part in "AB")
    torch.testing.assert_close(merged[key], base[key] + 16 * b @ a)
    assert load_trained(tmp_path / "merged").model.dtype == torch.float32


def test_an_evaluation_leaves_the_training_as_it_was_to_rounding(folder, tmp_path):
    """On some CPUs, bitsandbytes packs the weights in another way at the first evaluation, with rounded scales."""
    train(build_recipe(folder, tmp_path / "without"))
    train(build_recipe(folder, tmp_path / "with", eval_strategy="steps", eval_steps=1))
    assert list_losses(tmp_path / "with") == pytest.approx(list_losses(tmp_path / "without"), rel=1e-4)
