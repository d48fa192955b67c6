"""Compare the memory that ``higgs-trainer plan`` predicts with the memory that ``train`` takes on this CPU.

    python benchmarks/plan.py --json                      five configurations; the largest needs 14 GB and 12 GB of disk
    python benchmarks/plan.py --only tiny_lora,tiny_full  some of them
    python benchmarks/plan.py --only other                the configurations from which the constants were found

Each configuration is a random checkpoint with the vocabulary and the codebooks of the released one, and clips of random
codes. It is planned from its files without reading a weight, then trained for three steps by the real command, in a
process of its own. The measured figure is the largest resident memory of that process (VmHWM, as measure_command.py).
It contains Python and the libraries, which a process that only imports them measures, and the pages of mapped files:
weights in the dtype of their file are read straight from the page cache, and the system may take those pages back.
The predicted figure is that of the plan, which contains both too.

Errors are relative to the measured figure. `error_above_libraries` is that of the memory above Python and libraries,
which says more about the small configurations.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import build_random_checkpoint as random_checkpoint  # noqa: E402

NUM_CLIPS = 48
STEPS = 3


@dataclass(frozen=True)
class Configuration:
    """A model and what a recipe says about it.

    Attributes:
        sizes: of the model; empty: the released ones.
        recipe: sections that are merged into the recipe.
    """

    sizes: dict[str, int]
    recipe: dict[str, dict[str, Any] | None]
    clip_seconds: tuple[float, float] = (3.0, 8.0)


TINY = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
MIDDLE = {
    "hidden_size": 1024,
    "intermediate_size": 2752,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
}
NARROW = MIDDLE | {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 4}
SMALL = TINY | {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
}

LORA: dict[str, Any] = {"adapter": {}, "training": {"bf16": True}}
CHECKPOINTED: dict[str, Any] = {"adapter": {}, "training": {"bf16": True, "gradient_checkpointing": True}}
FULL: dict[str, Any] = {"training": {}}

REPORTED = {
    "tiny_lora": Configuration(TINY, LORA | {"data": {"tokens_per_pack": 1024}}),
    "tiny_full": Configuration(TINY, FULL | {"data": {"tokens_per_pack": 1024}}),
    "middle_lora_checkpointed": Configuration(MIDDLE, CHECKPOINTED | {"data": {"tokens_per_pack": 2048}}),
    "middle_lora": Configuration(MIDDLE, LORA | {"data": {"tokens_per_pack": 2048}}),
    "released_lora": Configuration({}, CHECKPOINTED | {"data": {"tokens_per_pack": 320}}),
}
OTHER = {
    "small_lora": Configuration(SMALL, LORA | {"data": {"tokens_per_pack": 700}}),
    "narrow_full": Configuration(NARROW, FULL | {"data": {"tokens_per_pack": 1536}}),
    "narrow_lora_float32": Configuration(
        NARROW,
        {
            "adapter": {"r": 32},
            "model": {"dtype": "float32"},
            "data": {"tokens_per_pack": 3000},
            "training": {},
        },
    ),
    "narrow_lora": Configuration(NARROW, LORA | {"data": {"tokens_per_pack": 1200}}),
}


def write_configuration(name: str, configuration: Configuration, folder: Path) -> Path:
    """Write model, codec, data and recipe. Return the file of the recipe."""
    model, codec, prepared = folder / "model", folder / "codec", folder / "prepared"
    if not (folder / "recipe.yaml").is_file():
        size = "small" if configuration.sizes else "released"
        random_checkpoint.write_codec(codec, size, seed=0)
        if configuration.sizes:
            random_checkpoint.SMALL_MODEL = configuration.sizes
        random_checkpoint.write_model(model, str(codec.resolve()), size, seed=0)
        write_clips(prepared, codec, configuration)
    recipe: dict[str, Any] = {
        "model": {"name_or_path": str(model), "codec": str(codec)},
        "data": {"train": str(prepared)},
        "training": {
            "output_dir": str(folder / "run"),
            "max_steps": STEPS,
            "use_cpu": True,
            "save_strategy": "no",
        },
    }
    for section, values in configuration.recipe.items():
        recipe[section] = recipe.get(section, {}) | (values or {})
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def write_clips(folder: Path, codec: Path, configuration: Configuration) -> None:
    """Write a prepared dataset of random codes."""
    from higgs_trainer.audio.codec import load_codec
    from higgs_trainer.dataset.prepared_writer import write_prepared

    generator = np.random.default_rng(0)
    rows = []
    for number in range(NUM_CLIPS):
        seconds = generator.uniform(*configuration.clip_seconds)
        codes_FK = generator.integers(1024, size=(round(seconds * 25), 8)).astype(np.uint16)
        rows.append(
            {
                "utterance_id": f"clip-{number}",
                "text": " ".join(["hello", "world"] * round(seconds)),
                "task": "single_speaker",
                "codes_FK": codes_FK,
                "duration_seconds": len(codes_FK) / 25,
                "num_references": 0,
                "context_codes": [],
                "context_texts": [],
                "text_changes": [],
            }
        )
    write_prepared(rows, folder, codec=load_codec(str(codec)), source="random")


def predict(recipe: Path) -> dict[str, Any]:
    """Plan a recipe in this process."""
    from higgs_trainer.planning.forecast import Forecast
    from higgs_trainer.recipe.reading import read_recipe

    forecast = Forecast(read_recipe(recipe), on_cpu=True)
    memory = forecast.compute_process_memory()
    return {"total": memory.total, "parts": memory.parts, "region": memory.region}


def measure(recipe: Path) -> dict[str, Any]:
    """Train in this process, and return its largest memory."""
    from higgs_trainer.peak_memory import read_peak_bytes
    from higgs_trainer.recipe.reading import read_recipe
    from higgs_trainer.run.train import train

    train(read_recipe(recipe), overwrite=True)
    return {"total": read_peak_bytes()}


def call(step: str, recipe: Path) -> dict[str, Any]:
    """Run `predict` or `measure` in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--step", step, "--recipe", str(recipe)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def compare(name: str, configuration: Configuration, folder: Path) -> dict[str, Any]:
    """Predict and measure one configuration, and return its figures in MB."""
    recipe = write_configuration(name, configuration, folder)
    predicted, measured = call("predict", recipe), call("measure", recipe)
    from higgs_trainer.planning.forecast import LIBRARIES

    libraries = predicted["parts"][LIBRARIES]
    row = {
        "name": name,
        "predicted_mb": round(predicted["total"] / 1e6),
        "measured_mb": round(measured["total"] / 1e6),
        "relative_error": round(predicted["total"] / measured["total"] - 1, 4),
        "libraries_mb": round(libraries / 1e6),
        "error_above_libraries": round(
            (predicted["total"] - libraries) / (measured["total"] - libraries) - 1, 4
        ),
        "parts_mb": {part: round(number / 1e6) for part, number in predicted["parts"].items()},
        "region": predicted["region"],
    }
    print(
        f"{name:26} predicted {row['predicted_mb']:6} MB, measured {row['measured_mb']:6} MB: "
        f"{row['relative_error']:+.1%} ({row['error_above_libraries']:+.1%} above the libraries' "
        f"{row['libraries_mb']} MB)",
        flush=True,
    )
    return row


def main() -> None:
    """Compare the configurations that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="names of configurations, or 'other'")
    parser.add_argument("--folder", type=Path, help="keep the checkpoints here; default: a temporary folder")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON in the last line")
    parser.add_argument("--step", choices=("predict", "measure"), help=argparse.SUPPRESS)
    parser.add_argument("--recipe", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        steps = {"predict": predict, "measure": measure}
        print(json.dumps(steps[arguments.step](arguments.recipe)))
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    known = REPORTED | OTHER
    chosen = list(OTHER) if arguments.only == "other" else list(REPORTED)
    if arguments.only and arguments.only != "other":
        chosen = arguments.only.split(",")
    with tempfile.TemporaryDirectory() as scratch:
        parent = arguments.folder or Path(scratch)
        rows = []
        for name in chosen:
            (parent / name).mkdir(parents=True, exist_ok=True)
            rows.append(compare(name, known[name], parent / name))
            if arguments.folder is None:
                shutil.rmtree(parent / name)
    worst = max(abs(row["relative_error"]) for row in rows)
    print(f"worst: {worst:.1%}")
    if arguments.json:
        print(json.dumps({"worst_relative_error": worst, "configurations": rows}))


if __name__ == "__main__":
    main()
