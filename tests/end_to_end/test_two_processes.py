"""One process and two: the same gradients, the same losses, every example once. DDP and fully_shard, on gloo."""

import json
import os
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import two_processes
from higgs_trainer.recipe.reading import read_recipe
from higgs_trainer.run.train import train

ROOT = Path(__file__).resolve().parents[2]
script = runpy.run_path(str(ROOT / "scripts" / "kill_and_resume.py"))
TOLERANCE = 1e-5

pytestmark = pytest.mark.slow


def launch(*arguments):
    """``accelerate launch`` with the file that the package ships."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch"),
            *("--config_file", str(ROOT / "recipes" / "launch" / "ddp.yaml"), "--main_process_port", "0"),
            *map(str, arguments),
        ],
        env={
            **os.environ,
            **script["ENVIRONMENT"],
            "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    launch(ROOT / "tests" / "two_processes.py", folder)
    return folder, json.loads((folder / "found.json").read_text())


def assert_same_gradients(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.linalg.norm(found[name] - gradient) <= TOLERANCE * torch.linalg.norm(gradient), name


@pytest.mark.parametrize("kind", two_processes.KINDS)
def test_ddp_has_the_gradients_and_the_log_of_one_process(measured, tmp_path, kind):
    folder, found = measured
    gradients, log = two_processes.train_one_step(kind, tmp_path)
    assert_same_gradients(load_file(folder / f"ddp {kind}.safetensors"), gradients)
    exact = {"loss", "audio_loss", "grad_norm", "codebook_0_accuracy", "learning_rate", "epoch"}
    exact |= {f"codebook_{k}_loss" for k in range(8)}
    for key in exact:
        assert found["logs"][kind][key] == pytest.approx(log[key], rel=TOLERANCE), key


@pytest.mark.parametrize("kind", two_processes.SHARDED_KINDS)
def test_fully_shard_has_the_gradients_of_one_process(measured, tmp_path, kind):
    folder, _ = measured
    gradients, _ = two_processes.train_one_step(kind, tmp_path)
    assert_same_gradients(load_file(folder / f"sharded {kind}.safetensors"), gradients)


def test_packs_and_padding_have_the_same_gradients(tmp_path):
    padded, packed = (two_processes.train_one_step(kind, tmp_path)[0] for kind in ("lora", "lora packed"))
    assert_same_gradients(packed, padded)


def test_two_processes_see_every_example_once_an_epoch(measured):
    for seen in measured[1]["seen"].values():
        assert Counter(seen) == {f"clip-{i}": 2 for i in range(len(two_processes.FRAMES))}


def test_evaluation_counts_every_held_out_example_once(measured, tmp_path):
    alone = two_processes.evaluate(tmp_path)
    for key in ("eval_loss", "eval_audio_loss", "eval_codebook_0_accuracy", "eval_codebook_7_loss"):
        assert measured[1]["evaluation"][key] == pytest.approx(alone[key], rel=1e-6), key


def test_what_accelerate_would_repeat_is_refused(measured):
    refusals = measured[1]["refusals"]
    assert len(refusals) == 2
    assert all("accelerate would repeat" in refusal for refusal in refusals)


def test_both_processes_start_from_the_checkpoint_that_the_first_finds_or_both_stop(measured):
    folder, found = measured
    (first, only_first, refused), (second, unseen, other) = found["starts"]
    assert first == second == str(folder)
    assert only_first == unseen
    assert "is not on the disk of process 1. Copy it" in unseen
    assert (refused, other) == ("only rank 0 has looked", "process 0 failed. See its error message.")


def test_a_shard_that_is_not_finite_stops_every_process_and_names_all_utterances(measured):
    everyone = sorted(f"clip-{i}" for i in range(len(two_processes.FRAMES)))
    for rank in measured[1]["stopped"]:
        for message in rank.values():
            assert "norm is inf" in message
            assert sorted(message.rpartition("utterances ")[2].partition(".")[0].split(", ")) == everyone


def test_the_command_on_two_processes_is_the_command_on_one(tmp_path):
    """End to end: one process with two micro-batches a step, and two processes with one."""
    recipe = script["write_inputs"](tmp_path, max_steps=4)
    still = ["--lora_dropout", "0", "--code_noise", "0"]
    train(read_recipe(recipe, ["--output_dir", str(tmp_path / "one"), *still]))
    overrides = [*still, "--output_dir", tmp_path / "two", "--gradient_accumulation_steps", "1"]
    output = launch(ROOT / "tests" / "ending.py", "train", recipe, *overrides)
    assert output.count("two: 4 steps trained") == 1  # one process speaks
    assert output.count("threads of the group: 0") == 2
    one, two = (script["read_losses"](tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 4
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=TOLERANCE, atol=0.0)
    weights = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two")]
    for name, weight in weights[0].items():
        assert torch.linalg.norm(weights[1][name] - weight) <= 1e-4 * torch.linalg.norm(weight), name
    last = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert last[1]["eval_loss"] == pytest.approx(last[0]["eval_loss"], rel=TOLERANCE)
    assert script["check_whole"](tmp_path / "two" / "checkpoint-4")
    assert len(list((tmp_path / "two" / "checkpoint-4").glob("rng_state_*.pth"))) == 2
