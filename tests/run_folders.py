"""Write a run folder as training does, by hand: few numbers, short tones, and texts that try to inject HTML."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from higgs_trainer.audio.files import write_audio
from higgs_trainer.run_folder import EVALUATION_SCHEMA

EVIL = (
    "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\"> \"&' {{ 7 * 7 }}"
)
STEPS = (3, 6, 7, 9, 12)
NUM_CODEBOOKS = 3


def tone(hz: float = 220.0, seconds: float = 0.5) -> Tensor:
    return 0.3 * torch.sin(2 * math.pi * hz * torch.arange(round(seconds * 24_000)) / 24_000)


def make_logs(shift: float = 0.0) -> list[dict[str, float]]:
    """Make logs whose numbers need all digits of a float. Steps 6 and 12 have a held-out log of their own line."""
    logs: list[dict[str, float]] = []
    for step in STEPS:
        loss = 5 / math.sqrt(step) + shift
        log = {
            "step": step,
            "loss": loss,
            "grad_norm": 0.1 + loss / 7,
            "learning_rate": 1e-4 / step,
            "epoch": step / 12,
        }
        logs.append(log | {f"codebook_{k}_loss": loss + k / 3 for k in range(NUM_CODEBOOKS)})
        if step in (6, 12):
            held_out = {"step": step, "eval_loss": loss + 1 / 3, "eval_codebook_0_accuracy": step / 17}
            logs.append(
                held_out | {f"eval_codebook_{k}_loss": loss + (k + 1) / 3 for k in range(NUM_CODEBOOKS)}
            )
    return logs


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_clips(folder: Path, clips: list[dict[str, Any]], hz: float = 220.0) -> None:
    """``index.jsonl`` with these lines, and a tone for each."""
    for number, clip in enumerate(clips):
        write_audio(folder / f"{number:04d}.wav", tone(hz * (number + 1), 0.4 + 0.1 * number))
        clip["audio"] = f"{number:04d}.wav"
    write_lines(folder / "index.jsonl", clips)


def write_run(folder: Path, *, shift: float = 0.0, texts: tuple[str, ...] = ("one two", EVIL)) -> Path:
    """Everything that a page can show."""
    write_lines(folder / "metrics.jsonl", make_logs(shift))
    for step in (0, 6, 12):
        write_clips(
            folder / f"samples/step-{step}",
            [{"text": t, "stopped": step > 0} for t in texts],
            200 + 20 * step,
        )
    recordings = [{"sentence": text, "kind": "reference", "text": "the reference’s words"} for text in texts]
    recordings.append({"sentence": texts[0], "kind": "recording", "text": texts[0]})
    write_clips(folder / "_recordings", recordings, 300)
    summary = {"utterances": 31, "hours": 0.25, "tasks": {"single_speaker": 31}, "languages": {EVIL: 31}}
    write_json(folder / "data_summary.json", {"train": summary, "eval": summary})
    prepared = folder / "prepared"
    (folder / "recipe.yaml").write_text(
        f"model: {{name_or_path: base}}\ndata: {{train: {prepared}/train, eval: {prepared}/held_out}}\n"
        f"adapter: {{r: 4}}\ntraining: {{learning_rate: {1e-4 + shift}}}\n# {EVIL}\n"
    )
    write_json(folder / "trainable_parameters.json", {"q_proj": {"trained": 125, "all": 1000}})
    write_json(
        folder / "environment.json", {"device": "cpu (x86_64)", "packages": {"torch": "2.13.0"}, "cuda": None}
    )
    write_json(folder / "metrics.json", {"train_runtime": 12.5})
    write_json(folder / "guard_report.json", make_guard_report())
    before = {"wer": {"value": 0.5}, "similarity": {"value": 0.5}, "stopped": {"value": 1.0}}
    after = {
        "wer": {"value": 0.125, "low": 0.05, "high": 0.25},
        "similarity": {"value": 0.75},
        "stopped": {"value": 1.0},
    }
    heard = {
        "audio": "../samples/step-0/0000.wav",
        "transcript": "One, two.",
        "stopped": False,
        "word_errors": 0,
    }
    spoken = {"audio": "../samples/step-12/0000.wav", "transcript": f"one too {EVIL}", "word_errors": 3}
    rows = [{"model": "before", "text": texts[0]} | heard, {"model": "after", "text": texts[0]} | spoken]
    write_evaluation_folder(folder, [{"model": "before"} | before, {"model": "after"} | after], rows)
    return folder


def write_evaluation_folder(
    run: Path, models: list[dict[str, Any]], rows: list[dict[str, Any]], **fields: Any
) -> None:
    """Write what ``evaluate`` leaves in a run folder, as far as readers need it."""
    figures = {"schema": EVALUATION_SCHEMA, "models": models, **fields}
    write_json(run / "evaluation" / "figures.json", figures)
    write_lines(run / "evaluation" / "rows.jsonl", rows)


def make_guard_report() -> dict[str, Any]:
    layers = [
        {
            "layer": n,
            "name": f"layer-{n}",
            "on": n != 2,
            "calls": 10 * n,
            "seen": {"input_ids": 5},
            "diverted": {"labels": n},
        }
        for n in (1, 2, 3, 4, 5)
    ]
    leak = {
        "key": "labels",
        "layer": 5,
        "source": f"PEFT {EVIL}",
        "remedy": "set task_type to None",
        "count": 7,
    }
    return {
        "contract": "higgs_audio_v2",
        "verdict": "guarded: 7 leaks from 1 place stopped, none reached the model",
        "layers": layers,
        "model_call": {"input_ids": {}},
        "leaks": [leak],
    }


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
