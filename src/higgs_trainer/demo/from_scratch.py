"""Train a small model from random weights on one synthetic voice that says digits.

The generated digits are only correct if the loss, the delay pattern, the end of stream and generation fit together.
"""

import shutil
import time
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor

from higgs_trainer.audio.mel_codec import MelCodec
from higgs_trainer.dataset.prepared_writer import write_encoded
from higgs_trainer.demo.blank_model import write_blank_model
from higgs_trainer.demo.muon import build_muon
from higgs_trainer.demo.outcome import (
    evaluate_sets,
    print_outcome,
    read_value,
    write_clip_set,
    write_page,
)
from higgs_trainer.demo.steps import (
    NUM_REFERENCES,
    generate_set,
    print_checks,
    print_heading,
)
from higgs_trainer.evaluation.recogniser import load_recogniser
from higgs_trainer.files import write_json
from higgs_trainer.recipe.reading import read_recipe
from higgs_trainer.run.check import check
from higgs_trainer.run.train import train
from higgs_trainer.run_folder import AFTER, DEMO_SUMMARY_FILE, REAL_VOICE_DECODED, RECIPE_FILE
from higgs_trainer.terminal import open_console

HELD_OUT = 40
MODEL_SIZES = {"hidden_size": 160, "intermediate_size": 384, "num_layers": 3, "num_heads": 4}


def train_from_scratch(output: Path) -> None:
    """Train the model into ``output``, judge its speech, and print the path of the page with the result.

    Raises:
        UserError: the recogniser is not installed.
    """
    started = time.perf_counter()
    console = open_console(to_stderr=True)
    # Loaded first, so that a missing package is reported before training.
    recogniser = load_recogniser()
    output.mkdir(parents=True, exist_ok=True)
    with as_file(files("higgs_trainer_demo")) as data:
        codec = MelCodec.from_pretrained(data / "codec")
        clips = read_digits(data / "digits")
        shutil.copy(data / "recipe_from_scratch.yaml", output / RECIPE_FILE)
        strings = (data / "unheard_strings.txt").read_text(encoding="utf-8").splitlines()

    print_heading(console, "prepare", f"write {len(clips)} utterances, which are packaged as codes")
    write_encoded(clips[:-HELD_OUT], output / "prepared" / "train", codec=codec, source="digits")
    write_encoded(clips[-HELD_OUT:], output / "prepared" / "held_out", codec=codec, source="digits")
    write_blank_model(output / "random", codec, seed=0, **MODEL_SIZES)
    recipe = read_recipe(output / RECIPE_FILE)

    print_heading(console, "check", "run real batches through train, evaluate and predict")
    print_checks(console, check(recipe))

    print_heading(console, "train", "train every parameter, from random weights")
    summary = train(recipe, build_optimizer=build_muon)
    console.print(summary.guard, markup=False, highlight=False, soft_wrap=True)

    run = Path(recipe.training.output_dir)
    print_heading(console, "generate", f"{len(strings)} texts that are not in the data")
    after = generate_set(run, strings, output / "wav" / "after")

    print_heading(console, "evaluate", "judge every clip with a speech recogniser and a speaker encoder")
    held_out = clips[-HELD_OUT:]
    sets = {
        AFTER: after,
        REAL_VOICE_DECODED: write_clip_set(
            [text for _, text, _ in held_out],
            [decode(codec, codes_FK) for _, _, codes_FK in held_out],
            output / "wav" / "the-corpus-through-the-codec",
        ),
    }
    references = [decode(codec, codes_FK) for _, _, codes_FK in clips[:NUM_REFERENCES]]
    report = evaluate_sets(sets, run, recogniser=recogniser, voice=references)
    page = write_page(output, run, "Higgs Trainer: speech from random weights")
    write_json(
        output / DEMO_SUMMARY_FILE,
        {
            "train_seconds": summary.metrics["train_runtime"],
            "total_seconds": time.perf_counter() - started,
            "wer_after": read_value(report, AFTER, "wer"),
            "wer_codec": read_value(report, REAL_VOICE_DECODED, "wer"),
            "similarity_after": read_value(report, AFTER, "similarity"),
            "similarity_codec": read_value(report, REAL_VOICE_DECODED, "similarity"),
            "stopped_share": read_value(report, AFTER, "stopped"),
            "codebook0_accuracy": summary.metrics["eval_codebook_0_accuracy"],
            "n": len(after.clips),
        },
    )
    print_outcome(report, page)


def read_digits(folder: Path) -> list[tuple[str, str, np.ndarray]]:
    """Read the packaged corpus: utterance id, text and codes (F, K) of each clip.

    ``codes.safetensors`` holds the concatenated frames of all clips and the number of frames of each clip.
    ``texts.txt`` holds a line for each clip.
    """
    tensors = load_file(folder / "codes.safetensors")
    ends = np.cumsum(tensors["num_frames"])
    clips = np.split(tensors["codes"], ends[:-1])
    texts = (folder / "texts.txt").read_text(encoding="utf-8").splitlines()
    return [
        (f"digits-{number:04d}", text, clip)
        for number, (text, clip) in enumerate(zip(texts, clips, strict=True))
    ]


def decode(codec: MelCodec, codes_FK: np.ndarray) -> Tensor:
    """Decode a clip of the corpus to its waveform (S,)."""
    return codec.decode(torch.from_numpy(codes_FK).long())
