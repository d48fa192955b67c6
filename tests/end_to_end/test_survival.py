"""A run that is killed, runs out of disk or is asked to end leaves whole checkpoints and says how to go on."""

import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from higgs_trainer.recipe.reading import read_recipe
from higgs_trainer.run.train import train

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "kill_and_resume.py"
script = runpy.run_path(str(SCRIPT))
ENVIRONMENT = {**os.environ, **script["ENVIRONMENT"]}


@pytest.mark.slow
def test_two_kills_and_the_losses_are_those_of_an_undisturbed_run():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "2", "--seed", "3"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills: the losses and weights are the same" in done.stdout


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return script["write_inputs"](tmp_path_factory.mktemp("run"), max_steps=6)


def start(recipe, *overrides, **options):
    """The command, as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "higgs_trainer", "train", str(recipe), *overrides],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def train_here(recipe, *overrides):
    """The same in this process, which has imported everything already."""
    train(read_recipe(recipe, overrides))


def test_a_run_that_is_resumed_after_its_last_step_trains_no_more(recipe, tmp_path):
    """Killed between the last checkpoint and the result; the last step is not the last of an epoch."""
    out = tmp_path / "out"
    train_here(recipe, "--output_dir", str(out), "--max_steps", "4")
    first, losses = (out / "adapter_model.safetensors").read_bytes(), script["read_losses"](out)
    (out / "adapter_model.safetensors").unlink()
    train_here(recipe, "--output_dir", str(out), "--max_steps", "4")
    assert (out / "adapter_model.safetensors").read_bytes() == first
    assert script["read_losses"](out) == losses
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-4"]
    assert not list(out.rglob("training_args.bin"))


def file_size_limit(size_bytes):
    """A full disk, as a limit on the size of a file (the error is "File too large")."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint_before(recipe, tmp_path):
    out = tmp_path / "out"
    train_here(recipe, "--output_dir", str(out), "--max_steps", "3")
    before = {path: path.read_bytes() for path in (out / "checkpoint-3").iterdir()}
    full = start(recipe, "--output_dir", str(out), preexec_fn=file_size_limit(15_000))
    _, errors = full.communicate()
    assert full.returncode == 1
    last_line = errors.strip().splitlines()[-1]
    assert "checkpoint-6 could not be written" in last_line
    assert "File too large" in last_line
    assert f"{out}/checkpoint-3 is complete" in last_line
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-3"]
    assert {path: path.read_bytes() for path in (out / "checkpoint-3").iterdir()} == before
    assert not any((out / "_unfinished").glob("checkpoint-*"))  # what was half written takes no room


@pytest.mark.slow
def test_sigterm_saves_says_how_to_go_on_and_exits_143(recipe, tmp_path):
    out = tmp_path / "out"
    without = ["--save_strategy", "no", "--eval_strategy", "no"]
    run = start(recipe, "--output_dir", str(out), "--max_steps", "2000", *without)
    while run.poll() is None and script["find_last_step"](out) < 4:
        time.sleep(0.01)
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate()
    assert run.returncode == 143, errors
    (checkpoint,) = out.glob("checkpoint-*")
    assert script["check_whole"](checkpoint)
    step = int(checkpoint.name.rpartition("-")[2])
    *_, last_line, command = errors.strip().splitlines()
    assert f"ended by SIGTERM after step {step}; saved" in last_line
    assert command == f"    higgs-trainer train {out}/recipe.yaml --resume_from_checkpoint true"
    assert not (out / "metrics.json").exists()

    overrides = ["--resume_from_checkpoint", "true", "--max_steps", str(step + 2)]
    train(read_recipe(out / "recipe.yaml", overrides), allow_changed=["training.max_steps"])
    steps = [line["step"] for line in script["read_metrics"](out) if "loss" in line]
    assert steps == list(range(1, step + 3))
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == step + 2
