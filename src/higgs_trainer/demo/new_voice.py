"""Fine-tune the packaged base model on a voice that it does not know, with the functions that the commands call.

prepare -> check -> generate (before) -> train -> generate (after) -> evaluate
"""

import shutil
import time
from importlib.resources import as_file, files
from pathlib import Path

from higgs_trainer.audio.codec import load_codec
from higgs_trainer.audio.files import read_audio
from higgs_trainer.corpus.prepare import prepare
from higgs_trainer.demo.outcome import (
    ClipSet,
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
from higgs_trainer.manifest.rows import read_rows
from higgs_trainer.model.model_files import CODEC_FOLDER
from higgs_trainer.recipe.reading import read_recipe
from higgs_trainer.run.check import check
from higgs_trainer.run.train import train
from higgs_trainer.run_folder import (
    AFTER,
    BEFORE,
    DEMO_SUMMARY_FILE,
    REAL_VOICE,
    REAL_VOICE_DECODED,
    RECIPE_FILE,
)
from higgs_trainer.terminal import open_console


def train_a_new_voice(output: Path) -> None:
    """Run the demo into ``output``, and print the path of the page with the result.

    Raises:
        UserError: the recogniser is not installed.
    """
    started = time.perf_counter()
    console = open_console(to_stderr=True)
    # Loaded first, so that a missing package is reported before training.
    recogniser = load_recogniser()
    base, voice = output / "base", output / "recordings"
    strings = _copy_data(output)

    print_heading(console, "prepare", "encode the recordings of the new voice")
    for name in ("train", "held_out"):
        prepare(voice / f"{name}.jsonl", output / "prepared" / name, codec=str(base / CODEC_FOLDER))
    recipe = read_recipe(output / RECIPE_FILE)

    print_heading(console, "check", "run real batches through train, evaluate and predict")
    print_checks(console, check(recipe))

    print_heading(console, "generate", f"{len(strings)} texts that are not in the data, with the base model")
    before = generate_set(base, strings, output / "wav" / "before")

    print_heading(console, "train", "train LoRA adapters on the new voice")
    summary = train(recipe)
    console.print(summary.guard, markup=False, highlight=False, soft_wrap=True)
    run = Path(recipe.training.output_dir)

    print_heading(console, "generate", "the same texts, with the adapters")
    after = generate_set(run, strings, output / "wav" / "after")

    print_heading(console, "evaluate", "judge every clip with a speech recogniser and a speaker encoder")
    sets = {BEFORE: before, AFTER: after, **_read_real_voice(output)}
    references = [read_audio(row.recording) for row in read_rows(voice / "train.jsonl")[:NUM_REFERENCES]]
    report = evaluate_sets(sets, run, recogniser=recogniser, voice=references)
    page = write_page(output, run, "Higgs Trainer: a new voice")
    write_json(
        output / DEMO_SUMMARY_FILE,
        {
            "train_seconds": summary.metrics["train_runtime"],
            "total_seconds": time.perf_counter() - started,
            "wer_before": read_value(report, BEFORE, "wer"),
            "wer_after": read_value(report, AFTER, "wer"),
            "wer_real": read_value(report, REAL_VOICE, "wer"),
            "wer_codec": read_value(report, REAL_VOICE_DECODED, "wer"),
            "similarity_before": read_value(report, BEFORE, "similarity"),
            "similarity_after": read_value(report, AFTER, "similarity"),
            "similarity_real": read_value(report, REAL_VOICE, "similarity"),
            "similarity_codec": read_value(report, REAL_VOICE_DECODED, "similarity"),
            "stopped_share": read_value(report, AFTER, "stopped"),
            "codebook0_accuracy": summary.metrics["eval_codebook_0_accuracy"],
            "n": len(after.clips),
        },
    )
    print_outcome(report, page)


def _copy_data(output: Path) -> list[str]:
    """Copy the base model, the recordings and the recipe into ``output``, and return the texts to generate."""
    with as_file(files("higgs_trainer_demo")) as data:
        shutil.copytree(data / "base", output / "base")
        shutil.copytree(data / "new_voice", output / "recordings")
        shutil.copy(data / RECIPE_FILE, output / RECIPE_FILE)
        return (data / "unheard_strings.txt").read_text(encoding="utf-8").splitlines()


def _read_real_voice(output: Path) -> dict[str, ClipSet]:
    """Read the held-out recordings of the new voice, as recorded and as decoded from their codes."""
    codec = load_codec(output / "base" / CODEC_FOLDER)
    rows = read_rows(output / "recordings" / "held_out.jsonl")
    texts = [row.text for row in rows]
    recordings = [read_audio(row.recording) for row in rows]
    decoded = [codec.decode(codec.encode(waveform_S)) for waveform_S in recordings]
    return {
        REAL_VOICE: write_clip_set(texts, recordings, output / "wav" / "the-real-voice"),
        REAL_VOICE_DECODED: write_clip_set(
            texts, decoded, output / "wav" / "the-real-voice-through-the-codec"
        ),
    }
