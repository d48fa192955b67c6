"""Kills a training run with SIGKILL at random moments and lets it go on, again and again.

    python scripts/kill_and_resume.py --kills 10

Half of the kills come during steps, half while a checkpoint is being written. After each, every checkpoint must be
whole. In the end the run must have logged, step by step, the losses of a run that nobody disturbed, and have its
weights, bit for bit (on a CPU, with one thread). Prints what happened; exits with 1 where anything differs.
"""

import argparse
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from higgs_trainer.audio.files import write_audio
from higgs_trainer.audio.mel_codec import MelCodec
from higgs_trainer.corpus.prepare import prepare
from higgs_trainer.demo.blank_model import write_blank_model

STEPS_A_KILL, SAVE_STEPS = 12, 3
RECIPE = """
model: {{name_or_path: model}}
data: {{train: prepared, eval: prepared, code_noise: 0.3, tokens_per_pack: 150}}
adapter: {{r: 4, lora_dropout: 0.2}}
training:
  output_dir: out
  max_steps: {max_steps}
  learning_rate: 1e-3
  gradient_accumulation_steps: 2
  logging_steps: 1
  eval_strategy: steps
  eval_steps: 5
  save_strategy: steps
  save_steps: {save_steps}
  save_total_limit: 1
  use_cpu: true
  disable_tqdm: true
  resume_from_checkpoint: true
"""
ALONE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


def main() -> None:
    """Run undisturbed, run with kills, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        recipe = write_house(Path(folder), max_steps=STEPS_A_KILL * (arguments.kills + 2))
        calm, killed = Path(folder, "calm"), Path(folder, "killed")
        finish(start(recipe, calm))
        print(f"undisturbed: {len(read_losses(calm))} steps")
        for number in range(arguments.kills):
            kill_once(start(recipe, killed), killed, during="save" if number % 2 else "steps", rng=rng)
        finish(start(recipe, killed))
        compare(calm, killed)
    print(f"{arguments.kills} kills, the same losses and weights")


def write_house(folder: Path, *, max_steps: int) -> Path:
    """A tiny model, its codec and eleven tones; returns the recipe."""
    torch.manual_seed(0)
    tones = [
        0.3 * torch.sin(torch.arange(6000 + 2400 * i) / 24_000 * 2 * math.pi * (200 + 70 * i))
        for i in range(11)
    ]
    codec = MelCodec.fit(tones, codebook_size=8, seed=0)
    write_blank_model(
        folder / "model", codec, seed=0, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2
    )
    for i, tone_S in enumerate(tones):
        write_audio(folder / f"{i}.wav", tone_S)
    rows = [{"audio": f"{i}.wav", "text": "one " * (1 + i % 4)} for i in range(len(tones))]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(folder / "data.jsonl", folder / "prepared", codec=str(folder / "model" / "codec"))
    (folder / "recipe.yaml").write_text(RECIPE.format(max_steps=max_steps, save_steps=SAVE_STEPS))
    return folder / "recipe.yaml"


def start(recipe: Path, output_dir: Path) -> subprocess.Popen[str]:
    """What a user types after every kill."""
    command = [sys.executable, "-m", "higgs_trainer", "train", str(recipe), "--output_dir", str(output_dir)]
    return subprocess.Popen(
        command, env={**os.environ, **ALONE}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(run: subprocess.Popen[str]) -> None:
    """Wait for the run's own end, which must be a good one."""
    output, _ = run.communicate()
    if run.returncode:
        sys.exit(f"the run failed with {run.returncode}:\n{output}")


def kill_once(run: subprocess.Popen[str], output_dir: Path, *, during: str, rng: random.Random) -> None:
    """Let the run make some steps, wait for the moment, kill it, look at what it left."""
    before = last_step(output_dir)
    wait = rng.randint(2, STEPS_A_KILL - SAVE_STEPS)
    while run.poll() is None and last_step(output_dir) < before + wait:
        time.sleep(0.001)
    while during == "save" and run.poll() is None and not any(output_dir.glob("_unfinished/checkpoint-*")):
        time.sleep(0.0002)
    time.sleep(rng.uniform(0, 0.03))
    if run.poll() is not None:
        sys.exit(f"the run ended by itself, with {run.returncode}:\n{run.communicate()[0]}")
    run.send_signal(signal.SIGKILL)
    run.communicate()
    torso = [path.name for path in output_dir.glob("_unfinished/*")]
    whole = [path.name for path in output_dir.glob("checkpoint-*") if check_whole(path)]
    print(f"killed during {during} after step {last_step(output_dir)}; whole: {whole}, half written: {torso}")


def check_whole(checkpoint: Path) -> bool:
    """Open every file of a checkpoint; raises where one is not whole."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    load_file(checkpoint / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.load(checkpoint / name, weights_only=True)
    assert all(path.stat().st_size for path in checkpoint.iterdir())
    return f"checkpoint-{state['global_step']}" == checkpoint.name


def read_metrics(output_dir: Path) -> list[dict[str, float]]:
    """The lines of the metrics file; one that is half written is left out."""
    path = output_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def last_step(output_dir: Path) -> int:
    """The newest step in the metrics file."""
    return int(max((line["step"] for line in read_metrics(output_dir)), default=0))


def read_losses(output_dir: Path) -> list[tuple[float, ...]]:
    """(step, loss, codebook 7's loss, gradient norm) of every training log, in the order of the file."""
    keys = ("step", "loss", "codebook_7_loss", "grad_norm")
    return [tuple(line[key] for key in keys) for line in read_metrics(output_dir) if "loss" in line]


def compare(calm: Path, killed: Path) -> None:
    """Losses and weights, bit for bit."""
    evaluations = [
        [(line["step"], line["eval_loss"]) for line in read_metrics(folder) if "eval_loss" in line]
        for folder in (calm, killed)
    ]
    if read_losses(calm) != read_losses(killed) or evaluations[0] != evaluations[1]:
        different = [(a, b) for a, b in zip(read_losses(calm), read_losses(killed), strict=False) if a != b]
        sys.exit(f"the losses differ: {different[:3]} {len(read_losses(calm))} {len(read_losses(killed))}")
    weights = [load_file(folder / "adapter_model.safetensors") for folder in (calm, killed)]
    if different := [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])]:
        sys.exit(f"the weights differ: {different}")


if __name__ == "__main__":
    main()
