"""The demo from nothing: random weights, one synthetic voice saying digits, and a model that speaks minutes later.

What it proves is that loss, delay pattern, end of stream and generation fit together: none of them can be wrong and
the digits still come out in order.
"""

import shutil
import time
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors.numpy import load_file
from torch import Tensor

from higgs_trainer.audio.mel_codec import MelCodec
from higgs_trainer.dataset.prepared_writer import write_encoded
from higgs_trainer.demo.blank_model import write_blank_model
from higgs_trainer.demo.muon import build_muon
from higgs_trainer.demo.new_voice import (
    NUM_REFERENCES,
    generate_set,
    make_empty,
    print_checks,
    print_heading,
    quiet_transformers,
)
from higgs_trainer.demo.outcome import (
    evaluate_sets,
    print_outcome,
    read_value,
    write_page,
    write_recordings,
    write_summary,
)
from higgs_trainer.evaluation.recogniser import load_recogniser
from higgs_trainer.recipe.reading import read_recipe
from higgs_trainer.run.train import check, train
from higgs_trainer.run_folder import AFTER, DEMO_SUMMARY_FILE, RECIPE_FILE

HELD_OUT = 40
MODEL_SIZES = {"hidden_size": 160, "intermediate_size": 384, "num_layers": 3, "num_heads": 4}


def learn_to_speak(output: Path) -> None:
    """Train the small model from random weights into ``output``, let it speak, and judge it."""
    started = time.perf_counter()
    console = Console(stderr=True)
    quiet_transformers()
    make_empty(output)
    recogniser = load_recogniser()
    with as_file(files("higgs_trainer_demo")) as assets:
        codec = MelCodec.from_pretrained(assets / "codec")
        clips = read_digits(assets / "digits")
        shutil.copy(assets / "recipe_from_scratch.yaml", output / RECIPE_FILE)
        strings = (assets / "unheard_strings.txt").read_text(encoding="utf-8").splitlines()

    print_heading(console, "prepare", f"{len(clips)} utterances, already codes")
    write_encoded(clips[:-HELD_OUT], output / "prepared" / "train", codec=codec, source="digits")
    write_encoded(clips[-HELD_OUT:], output / "prepared" / "held_out", codec=codec, source="digits")
    write_blank_model(output / "random", codec, seed=0, **MODEL_SIZES)
    recipe = read_recipe(output / RECIPE_FILE, [])

    print_heading(console, "check", "real batches through train, evaluate and predict")
    print_checks(console, check(recipe))

    print_heading(console, "train", "every parameter, from random weights")
    summary = train(recipe, build_optimizer=build_muon)
    console.print(summary.cascade, markup=False, highlight=False, soft_wrap=True)

    print_heading(console, "speak", f"{len(strings)} strings that are not in the corpus")
    spoken = generate_set(Path(recipe.training.output_dir), strings, output / "wav" / "after")
    held_out = clips[-HELD_OUT:]
    sets = {
        AFTER: spoken,
        "the corpus through the codec": write_recordings(
            [text for _, text, _ in held_out],
            [decode(codec, codes_FK) for _, _, codes_FK in held_out],
            output / "wav" / "the-corpus-through-the-codec",
        ),
    }
    references = [decode(codec, codes_FK) for _, _, codes_FK in clips[:NUM_REFERENCES]]
    print_heading(console, "listen", "a speech recogniser and a speaker encoder judge every clip")
    run = Path(recipe.training.output_dir)
    report = evaluate_sets(sets, run, recogniser=recogniser, voice=references)
    page = write_page(output, run, "Higgs Trainer: speech from nothing")
    write_summary(
        output / DEMO_SUMMARY_FILE,
        {
            "train_seconds": summary.metrics["train_runtime"],
            "total_seconds": time.perf_counter() - started,
            "wer_after": read_value(report, AFTER, "wer"),
            "wer_codec": read_value(report, "the corpus through the codec", "wer"),
            "similarity_after": read_value(report, AFTER, "similarity"),
            "similarity_codec": read_value(report, "the corpus through the codec", "similarity"),
            "stopped_share": read_value(report, AFTER, "stopped"),
            "codebook0_accuracy": summary.metrics["eval_codebook_0_accuracy"],
            "n": len(spoken.clips),
        },
    )
    print_outcome(report, page)


def read_digits(folder: Path) -> list[tuple[str, str, np.ndarray]]:
    """The packaged corpus, (utterance id, text, codes (F, K)) a clip.

    ``codes.safetensors`` holds the frames of all clips, one clip behind the other, and their numbers of frames;
    ``texts.txt`` what is said, a line each.
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
    """The waveform (S,) of a clip of the corpus."""
    return codec.decode(torch.from_numpy(codes_FK).long())
