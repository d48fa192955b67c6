"""FSDP2 on two processes, by Trainer and accelerate and with the launch file that the package ships, on gloo."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments

from higgs_trainer.errors import CheckpointError, DamageError
from higgs_trainer.model.loading import load_trained
from higgs_trainer.recipe.reading import read_recipe
from higgs_trainer.run.train import train
from higgs_trainer.training.checkpoint_damage import check_checkpoint
from higgs_trainer.training.trainer import HiggsAudioTrainer

ROOT = Path(__file__).resolve().parents[2]
script = runpy.run_path(str(ROOT / "scripts" / "kill_and_resume.py"))

RECIPE = """
model: {{name_or_path: {model}, dtype: {dtype}}}
data: {{train: prepared, eval: prepared, tokens_per_pack: 150}}
adapter: {adapter}
training:
  output_dir: {name}
  max_steps: 4
  learning_rate: 1e-3
  lr_scheduler_type: constant
  logging_steps: 1
  eval_strategy: steps
  eval_steps: 2
  save_strategy: steps
  save_steps: 2
  save_total_limit: 1
  load_best_model_at_end: true
  metric_for_best_model: eval_loss
  # The loss falls, so that the best checkpoint is the first one, not the last.
  greater_is_better: true
  bf16: {bf16}
  gradient_checkpointing: {checkpointing}
  use_cpu: true
  # A process that waits in vain fails.
  ddp_timeout: 60
  disable_tqdm: true
samples: {{texts: [one two], ref_audio: 3.wav, ref_text: one two three, held_out: 1, max_seconds: 0.2}}
"""
LORA = "{r: 3, lora_alpha: 5, modules_to_save: [audio_lm_head]}"
KINDS = {
    "full": {
        "model": "model",
        "dtype": "float32",
        "adapter": "null",
        "bf16": "false",
        "checkpointing": "false",
    },
    "full bf16": {
        "model": "model16",
        "dtype": "auto",
        "adapter": "null",
        "bf16": "true",
        "checkpointing": "true",
    },
    "lora": {"model": "model16", "dtype": "auto", "adapter": LORA, "bf16": "true", "checkpointing": "true"},
}
RESUMED = ("full", "lora")
# In float32, sums are added up in another order. In bfloat16, FSDP also rounds the residual stream and the norms, which
# autocast leaves in float32: each number may differ by one rounding, half of eps.
TOLERANCES = {
    "full": 1e-5,
    "full bf16": torch.finfo(torch.bfloat16).eps / 2,
    "lora": torch.finfo(torch.bfloat16).eps / 2,
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train each kind on two processes, undisturbed and in two parts. Returns folder, records and output."""
    folder = tmp_path_factory.mktemp("sharded")
    script["write_inputs"](folder, max_steps=1)
    shutil.copytree(folder / "model", folder / "model16")
    weights = load_file(folder / "model" / "model.safetensors")
    rounded = {name: weight.bfloat16() for name, weight in weights.items()}
    save_file(rounded, folder / "model16" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "model16" / "config.json").read_text())
    (folder / "model16" / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    runs = {}
    for kind, values in KINDS.items():
        recipe = folder / f"{kind}.yaml"
        recipe.write_text(RECIPE.format(name=kind, **values))
        runs[kind] = [str(recipe)]
        if kind in RESUMED:
            parts = [str(recipe), "--output_dir", str(folder / f"{kind} parts")]
            runs[f"{kind} begun"] = [*parts, "--max_steps", "2"]
            runs[f"{kind} resumed"] = [*parts, "--resume_from_checkpoint", "true"]
    (folder / "runs.json").write_text(json.dumps(runs))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch"),
            *("--config_file", str(ROOT / "recipes" / "launch" / "fsdp2.yaml"), "--main_process_port", "0"),
            *map(str, (ROOT / "tests" / "sharded_processes.py", folder / "runs.json", folder / "found.json")),
        ],
        env={**os.environ, **script["ENVIRONMENT"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, json.loads((folder / "found.json").read_text()), done.stdout + done.stderr


@pytest.fixture(scope="module")
def alone(trained):
    """Train each kind in this process, with two micro-batches a step."""
    folder = trained[0]
    for kind in KINDS:
        words = ["--output_dir", str(folder / f"{kind} alone"), "--gradient_accumulation_steps", "2"]
        train(read_recipe(folder / f"{kind}.yaml", words))
    return folder


def read_logs(folder):
    """Return the logged metrics by step and name."""
    logs = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        step = entry.pop("step")
        logs |= {(step, name): value for name, value in entry.items()}
    return logs


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_sharded_over_both_processes(trained, kind):
    for rank in trained[1][kind]:
        assert rank["unsharded"] == 0
        assert rank["layers"] == 2
        assert rank["numbers"] < 0.6 * rank["all_numbers"]
    assert sum(rank["numbers"] for rank in trained[1][kind]) == rank["all_numbers"]


def test_gradients_are_added_up_in_float32_and_products_computed_in_bfloat16(trained):
    for kind in ("full bf16", "lora"):
        for rank in trained[1][kind]:
            assert (rank["reduced"], rank["computed"]) == (["torch.float32"], ["torch.bfloat16"])
            assert rank["trained"] == ["torch.float32"]


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_first_process_reads_the_weights(trained, kind):
    assert [rank["loaded"] for rank in trained[1][kind]] == [["cpu"], ["meta"]]


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradient_norms_are_those_of_one_process(trained, alone, kind):
    found, expected = (read_logs(alone / name) for name in (kind, f"{kind} alone"))
    compared = [
        key
        for key in expected
        if key[1] in {"loss", "grad_norm", "eval_loss", "eval_codebook_7_loss", "codebook_0_loss"}
    ]
    assert len(compared) == 4 * 3 + 2 * 2
    for key in compared:
        assert found[key] == pytest.approx(expected[key], rel=TOLERANCES[kind]), key


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_spoken_by_all_processes_and_are_those_of_one_process(trained, alone, kind):
    clips = {}
    for name in (kind, f"{kind} alone"):
        folder = alone / name / "samples"
        assert sorted(path.name for path in folder.iterdir()) == ["step-0", "step-2", "step-4"]
        clips[name] = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.wav")}
        assert len(clips[name]) == 6
    # Rounding to bfloat16 may change which code is drawn.
    if kind == "full":
        assert clips[kind] == clips[f"{kind} alone"]


@pytest.mark.parametrize("kind", RESUMED)
def test_a_resumed_run_has_the_losses_of_an_undisturbed_one(trained, kind):
    found, expected = (read_logs(trained[0] / name) for name in (f"{kind} parts", kind))
    for key in expected:
        if key[1] in {"loss", "grad_norm", "eval_loss"}:
            assert found[key] == expected[key], key


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_has_the_shards_of_both_processes_and_no_gathered_state(trained, kind):
    checkpoint = trained[0] / kind / "checkpoint-4"
    for part in ("pytorch_model_fsdp_0", "optimizer_0"):
        assert sorted(path.name for path in (checkpoint / part).glob("*.distcp")) == [
            "__0_0.distcp",
            "__1_0.distcp",
        ]
    assert not list(checkpoint.rglob("*.bin"))
    weights = [path.name for path in checkpoint.glob("*.safetensors")]
    assert weights == (["adapter_model.safetensors"] if kind == "lora" else [])


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
@pytest.mark.parametrize(
    "name", ["pytorch_model_fsdp_0/__1_0.distcp", "optimizer_0/__0_0.distcp", "optimizer_0/.metadata"]
)
def test_a_damaged_shard_is_found_and_named(trained, tmp_path, name, damage):
    checkpoint = tmp_path / "checkpoint-4"
    shutil.copytree(trained[0] / "full" / "checkpoint-4", checkpoint)
    check_checkpoint(checkpoint, [])
    path = checkpoint / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(DamageError) as raised:
        check_checkpoint(checkpoint, [])
    assert name in str(raised.value)


def test_a_checkpoint_in_shards_is_not_taken_for_a_model(trained):
    with pytest.raises(CheckpointError, match=r"its weights are in shards, in pytorch_model_fsdp_0\. Resume"):
        load_trained(trained[0] / "full" / "checkpoint-4")


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_the_best_checkpoint_and_loads_as_any_model(trained, tmp_path, kind):
    folder = trained[0]
    logs = read_logs(folder / kind)
    assert logs[4, "eval_loss"] < logs[2, "eval_loss"] - 0.005
    file = "adapter_model.safetensors" if kind == "lora" else "model.safetensors"
    # A full fine-tune is rounded once, to the dtype of its base.
    dtype = torch.bfloat16 if kind == "full bf16" else torch.float32
    assert {weight.dtype for weight in load_file(folder / kind / file).values()} == {dtype}
    result = load_trained(folder / kind, dtype="float32" if kind == "lora" else "auto")
    assert result.model.dtype == dtype
    trainer = HiggsAudioTrainer(
        result.model.float(),
        TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"),
        processing_class=result.tokenizer,
        eval_dataset=folder / "prepared",
        codec=folder / "model" / "codec",
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(logs[2, "eval_loss"], rel=TOLERANCES[kind])


def test_no_layer_returns_a_view(trained):
    assert "in-place op on this view" not in trained[2]
