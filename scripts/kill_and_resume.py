"""Kill a training run with SIGKILL at random moments, and resume it after each kill.

    python scripts/kill_and_resume.py --kills 10

Half of the kills come during steps, half while a checkpoint is written. After each kill, every checkpoint must be
complete. In the end, the losses of all steps and the weights must equal those of an undisturbed run bit for bit (on a
CPU, with one thread). The exit code is 1 if anything differs.
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
from higgs_trainer.model.model_files import CODEC_FOLDER
from higgs_trainer.model.weight_files import ADAPTER_WEIGHTS
from higgs_trainer.run_folder import LOG_FILE, RECIPE_FILE, TRAINER_STATE_FILE, UNFINISHED_FOLDER

STEPS_PER_KILL, SAVE_STEPS = 12, 3
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
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
}


def main() -> None:
    """Run once undisturbed and once with kills, and compare the two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        recipe = write_inputs(Path(folder), max_steps=STEPS_PER_KILL * (arguments.kills + 2))
        calm, killed = Path(folder, "calm"), Path(folder, "killed")
        finish(start(recipe, calm))
        print(f"undisturbed: {len(read_losses(calm))} steps")
        for number in range(arguments.kills):
            kill_once(start(recipe, killed), killed, during="save" if number % 2 else "steps", rng=rng)
        finish(start(recipe, killed))
        compare(calm, killed)
    print(f"{arguments.kills} kills: the losses and weights are the same")


def write_inputs(folder: Path, *, max_steps: int) -> Path:
    """Write a tiny model, its codec, a dataset of eleven tones and a recipe, and return the path of the recipe."""
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
    prepare(folder / "data.jsonl", folder / "prepared", codec=str(folder / "model" / CODEC_FOLDER))
    recipe = folder / RECIPE_FILE
    recipe.write_text(RECIPE.format(max_steps=max_steps, save_steps=SAVE_STEPS))
    return recipe


def start(recipe: Path, output_dir: Path) -> subprocess.Popen[str]:
    """Start or resume the run with the command that a user would type."""
    command = [sys.executable, "-m", "higgs_trainer", "train", str(recipe), "--output_dir", str(output_dir)]
    return subprocess.Popen(
        command,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(run: subprocess.Popen[str]) -> None:
    """Wait until the run has ended, and exit if it failed."""
    output, _ = run.communicate()
    if run.returncode:
        sys.exit(f"the run failed with {run.returncode}:\n{output}")


def kill_once(run: subprocess.Popen[str], output_dir: Path, *, during: str, rng: random.Random) -> None:
    """Let the run make some steps, wait for a step or a save, kill it, and check its checkpoints."""
    before = find_last_step(output_dir)
    wait = rng.randint(2, STEPS_PER_KILL - SAVE_STEPS)
    while run.poll() is None and find_last_step(output_dir) < before + wait:
        time.sleep(0.001)
    while (
        during == "save"
        and run.poll() is None
        and not any(output_dir.glob(f"{UNFINISHED_FOLDER}/checkpoint-*"))
    ):
        time.sleep(0.0002)
    time.sleep(rng.uniform(0, 0.03))
    if run.poll() is not None:
        sys.exit(f"the run ended before it was killed, with {run.returncode}:\n{run.communicate()[0]}")
    run.send_signal(signal.SIGKILL)
    run.communicate()
    unfinished = [path.name for path in output_dir.glob(f"{UNFINISHED_FOLDER}/*")]
    whole = [path.name for path in output_dir.glob("checkpoint-*") if check_whole(path)]
    print(
        f"killed during {during} after step {find_last_step(output_dir)}; complete: {whole}, unfinished: {unfinished}"
    )


def check_whole(checkpoint: Path) -> bool:
    """Open every file of a checkpoint, and check its step. An incomplete file raises an exception."""
    state = json.loads((checkpoint / TRAINER_STATE_FILE).read_text())
    load_file(checkpoint / ADAPTER_WEIGHTS)
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.load(checkpoint / name, weights_only=True)
    assert all(path.stat().st_size for path in checkpoint.iterdir())
    return f"checkpoint-{state['global_step']}" == checkpoint.name


def read_metrics(output_dir: Path) -> list[dict[str, float]]:
    """Read the complete lines of the metrics file."""
    path = output_dir / LOG_FILE
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def find_last_step(output_dir: Path) -> int:
    """Return the last step in the metrics file."""
    return int(max((line["step"] for line in read_metrics(output_dir)), default=0))


def read_losses(output_dir: Path) -> list[tuple[float, ...]]:
    """Return step, loss, loss of codebook 7 and gradient norm of each training log, in the order of the file."""
    keys = ("step", "loss", "codebook_7_loss", "grad_norm")
    return [tuple(line[key] for key in keys) for line in read_metrics(output_dir) if "loss" in line]


def compare(calm: Path, killed: Path) -> None:
    """Compare losses and weights bit for bit, and exit if they differ."""
    evaluations = [
        [(line["step"], line["eval_loss"]) for line in read_metrics(folder) if "eval_loss" in line]
        for folder in (calm, killed)
    ]
    if read_losses(calm) != read_losses(killed) or evaluations[0] != evaluations[1]:
        different = [(a, b) for a, b in zip(read_losses(calm), read_losses(killed), strict=False) if a != b]
        sys.exit(f"the losses differ: {different[:3]} {len(read_losses(calm))} {len(read_losses(killed))}")
    weights = [load_file(folder / ADAPTER_WEIGHTS) for folder in (calm, killed)]
    if different := [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])]:
        sys.exit(f"the weights differ: {different}")


if __name__ == "__main__":
    main()
