"""The demo proper: the packaged base model learns a voice that it never heard, by the verbs that users type.

prepare -> check -> speak (before) -> train -> speak (after) -> judge
"""

import shutil
import time
import warnings
from importlib.resources import as_file, files
from pathlib import Path

import transformers
from rich.console import Console

from higgs_trainer.audio.codec import load_codec
from higgs_trainer.audio.files import read_audio
from higgs_trainer.corpus.prepare import prepare
from higgs_trainer.demo.outcome import (
    ClipSet,
    evaluate_sets,
    print_outcome,
    read_value,
    write_page,
    write_recordings,
    write_summary,
)
from higgs_trainer.errors import HiggsTrainerError, UserError
from higgs_trainer.evaluation.comparison import generate_clips
from higgs_trainer.evaluation.recogniser import load_recogniser
from higgs_trainer.evaluation.sentences import EvaluationSentence
from higgs_trainer.manifest.rows import read_rows
from higgs_trainer.model.loading import CODEC_FOLDER
from higgs_trainer.recipe.reading import read_recipe
from higgs_trainer.run.train import CheckReport, check, train
from higgs_trainer.run_folder import AFTER, BEFORE, DEMO_SUMMARY_FILE, RECIPE_FILE
from higgs_trainer.speech.generate import Request
from higgs_trainer.speech.sampling import Sampling
from higgs_trainer.speech.speech_model import load_speech_model

NUM_REFERENCES = 20  # recordings whose mean embedding stands for the voice
SAMPLING = Sampling(greedy=True, max_seconds=8.0)


def learn_a_voice(output: Path) -> None:
    """Run the demo into ``output`` and print where to listen."""
    started = time.perf_counter()
    console = Console(stderr=True)
    quiet_transformers()
    make_empty(output)
    recogniser = load_recogniser()  # a missing extra must show before anything is trained

    with as_file(files("higgs_trainer_demo")) as assets:
        base, voice = output / "base", output / "recordings"
        shutil.copytree(assets / "base", base)
        shutil.copytree(assets / "new_voice", voice)
        shutil.copy(assets / RECIPE_FILE, output / RECIPE_FILE)
        strings = (assets / "unheard_strings.txt").read_text(encoding="utf-8").splitlines()

    print_heading(console, "prepare", "the recordings of the new voice become codes, once")
    for name in ("train", "held_out"):
        prepare(voice / f"{name}.jsonl", output / "prepared" / name, codec=str(base / CODEC_FOLDER))
    recipe = read_recipe(output / RECIPE_FILE, [])

    print_heading(console, "check", "real batches through train, evaluate and predict")
    print_checks(console, check(recipe))

    held_out = read_rows(voice / "held_out.jsonl")
    print_heading(console, "before", f"the base model speaks {len(strings)} strings that nobody recorded")
    before = generate_set(base, strings, output / "wav" / "before")

    print_heading(console, "train", "LoRA adapters on the new voice")
    summary = train(recipe)
    console.print(summary.cascade, markup=False, highlight=False, soft_wrap=True)
    after_folder = Path(recipe.training.output_dir)

    print_heading(console, "after", "the same strings, with the adapters")
    after = generate_set(after_folder, strings, output / "wav" / "after")

    codec = load_codec(base / CODEC_FOLDER)
    recordings = [read_audio(u.recording) for u in held_out]
    texts = [u.text for u in held_out]
    sets = {
        BEFORE: before,
        AFTER: after,
        "the real voice": write_recordings(texts, recordings, output / "wav" / "the-real-voice"),
        "the real voice through the codec": write_recordings(
            texts,
            [codec.decode(codec.encode(waveform_S)) for waveform_S in recordings],
            output / "wav" / "the-real-voice-through-the-codec",
        ),
    }
    print_heading(console, "listen", "a speech recogniser and a speaker encoder judge every clip")
    references = [read_audio(u.recording) for u in read_rows(voice / "train.jsonl")[:NUM_REFERENCES]]
    report = evaluate_sets(sets, after_folder, recogniser=recogniser, voice=references)
    page = write_page(output, after_folder, "Higgs Trainer: a new voice")
    write_summary(
        output / DEMO_SUMMARY_FILE,
        {
            "train_seconds": summary.metrics["train_runtime"],
            "total_seconds": time.perf_counter() - started,
            "wer_before": read_value(report, BEFORE, "wer"),
            "wer_after": read_value(report, AFTER, "wer"),
            "wer_real": read_value(report, "the real voice", "wer"),
            "wer_codec": read_value(report, "the real voice through the codec", "wer"),
            "similarity_before": read_value(report, BEFORE, "similarity"),
            "similarity_after": read_value(report, AFTER, "similarity"),
            "similarity_real": read_value(report, "the real voice", "similarity"),
            "similarity_codec": read_value(report, "the real voice through the codec", "similarity"),
            "stopped_share": read_value(report, AFTER, "stopped"),
            "codebook0_accuracy": summary.metrics["eval_codebook_0_accuracy"],
            "n": len(after.clips),
        },
    )
    print_outcome(report, page)


def make_empty(output: Path) -> None:
    """``UserError`` where ``output`` holds files already."""
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output} is not empty; remove it, or give another folder with --output")
    output.mkdir(parents=True, exist_ok=True)


def quiet_transformers() -> None:
    """Leave out transformers' bars over the loading of a few megabytes, and its notes to its own developers."""
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def print_heading(console: Console, verb: str, what: str) -> None:
    """A heading of the demo's story."""
    console.print(f"\n[bold cyan]{verb:8}[/bold cyan] {what}")


def print_checks(console: Console, report: CheckReport) -> None:
    """What ``check`` saw; ``HiggsTrainerError`` where one of the checks failed, since the demo's data is sound."""
    console.print(report.cascade, markup=False, highlight=False, soft_wrap=True)
    for result in report.results:
        console.print(
            f"{'passed' if result.passed else 'FAILED'}  {result.name} ({result.found})", highlight=False
        )
    if not report.passed:
        raise HiggsTrainerError("a check of the demo failed, as shown above; please report it")


def generate_set(model: Path, strings: list[str], folder: Path) -> ClipSet:
    """Generate clips of these strings, as ``higgs-trainer generate`` does."""
    sentences = [EvaluationSentence(Request(string), "", None, ()) for string in strings]
    clips, _ = generate_clips(load_speech_model(model, sampling=SAMPLING), sentences, folder)
    return ClipSet(strings, clips)
