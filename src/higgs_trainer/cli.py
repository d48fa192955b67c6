"""The verbs and their arguments. Each verb calls one function, imported only then: `-h` must not wait for torch."""

import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from higgs_trainer import __version__
from higgs_trainer.errors import HiggsTrainerError, UserError
from higgs_trainer.guard.leak import LabelLeakError

if TYPE_CHECKING:
    from rich.table import Table

    from higgs_trainer.run import CheckReport
    from higgs_trainer.speech.script import ScriptLine, Voice

app = typer.Typer(
    name="higgs-trainer",
    help="Fine-tune Higgs Audio speech models: no label leaks in, no target leaks in, nothing is lost silently.",
    epilog="Start with **higgs-trainer demo**: the whole thing, offline, on a CPU.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML recipe.", show_default=False)]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="--FIELD VALUE",
        help="Fields to set over the recipe: by name, or by dotted path as in --training.seed 1.",
        show_default=False,
    ),
]
Dtype = Literal["float32", "bfloat16", "float16"]
OVERRIDES = {"ignore_unknown_options": True}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. What this package raises on purpose ends with its message alone.

    Exit codes: 0 done, 1 the run failed, 2 a mistake in what the user gave, 143 ended by SIGTERM after saving.
    """
    try:
        app(args=arguments)
    except HiggsTrainerError as error:
        _print_error(error)
        sys.exit(error.exit_code)
    except LabelLeakError as error:
        _print_error(error)
        sys.exit(1)


def _print_error(error: Exception) -> None:
    from rich.console import Console
    from rich.text import Text

    message = Text.assemble(("error: ", "bold red"), str(error))
    Console(stderr=True).print(message, soft_wrap=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"higgs-trainer {__version__}")
        raise typer.Exit


@app.callback()
def set_options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Options of the command itself."""


@app.command()
def prepare(
    manifest: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="A manifest, or data in any known format.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the dataset is written.")
    ],
    codec: Annotated[
        str,
        typer.Option(metavar="NAME", help="'embedded', the folder of a codec, or the real one's hub name."),
    ] = "embedded",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a dataset that is there.")] = False,
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Accept audio outside the manifest's folder.")
    ] = False,
    allow_own_reference: Annotated[
        bool, typer.Option("--allow-own-reference", help="Accept a row's own audio as its reference.")
    ] = False,
    pair_references: Annotated[
        bool,
        typer.Option("--pair-references", help="Draw references from the same speaker's other clips."),
    ] = False,
    seed: Annotated[int, typer.Option(help="For --pair-references.")] = 0,
    expand_numbers: Annotated[
        bool, typer.Option("--expand-numbers", help="Whole numbers in words, by each row's language.")
    ] = False,
    tags: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write control tags otherwise, by this table.")
    ] = None,
    max_rejected: Annotated[
        int, typer.Option(metavar="N", min=0, help="Leave out up to N bad rows; rejected.jsonl says why.")
    ] = 0,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write a page about the corpus, with players.")
    ] = None,
    loudness_lufs: Annotated[
        float | None, typer.Option(max=0.0, help="Bring every recording to this loudness, such as -23.")
    ] = None,
    min_seconds: Annotated[float, typer.Option(min=0.1, help="Shorter recordings are bad rows.")] = 0.1,
    max_seconds: Annotated[float, typer.Option(min=0.1, help="Longer ones, too.")] = 120.0,
    min_sample_rate_hz: Annotated[int, typer.Option(help="Lower rates, too.")] = 8_000,
    min_peak_dbfs: Annotated[float, typer.Option(help="More silent ones, too.")] = -50.0,
    max_clipped_percent: Annotated[float, typer.Option(help="More samples at full scale, too.")] = 1.0,
    max_pace_factor: Annotated[
        float, typer.Option(min=1.0, help="Words so many times faster or slower than the corpus's, too.")
    ] = 4.0,
    allow_duplicates: Annotated[
        bool, typer.Option("--allow-duplicates", help="Accept a row that is there twice.")
    ] = False,
    batch_seconds: Annotated[
        float, typer.Option(min=0.1, help="So much sound of equal length is encoded at once.")
    ] = 60.0,
) -> None:
    """Check recordings and transcripts, and encode them once.

    DATA is our own manifest, JSON lines with **audio** (a path from its folder), **text** and whatever else
    docs/data_formats.md lists, or one of the other formats there. Everything wrong is reported together, with file
    and line, before anything is written. A run that was killed goes on where it was; under
    **accelerate launch -m higgs_trainer prepare ...** each process encodes its share.
    """
    from higgs_trainer.data.prepare import prepare
    from higgs_trainer.data.recordings import Limits
    from higgs_trainer.data.text import TextRules, read_tags

    done = prepare(
        manifest,
        output,
        codec=codec,
        overwrite=overwrite,
        allow_outside=allow_outside,
        allow_own_reference=allow_own_reference,
        text_rules=TextRules(expand_numbers, read_tags(tags) if tags else {}),
        pair_seed=seed if pair_references else None,
        max_rejected=max_rejected,
        report=report,
        loudness_lufs=loudness_lufs,
        limits=Limits(
            min_seconds=min_seconds,
            max_seconds=max_seconds,
            min_sample_rate_hz=min_sample_rate_hz,
            min_peak_dbfs=min_peak_dbfs,
            max_clipped_percent=max_clipped_percent,
            max_pace_factor=max_pace_factor,
            allow_duplicates=allow_duplicates,
        ),
        batch_seconds=batch_seconds,
    )
    if done.process_index > 0:
        return
    card = done.card
    typer.echo(f"{done.folder}: {card.utterances} utterances, {card.hours:.2f} h, codec {card.codec_name}")
    if done.resumed:
        typer.echo(f"resumed: {done.resumed} recordings were encoded already")
    if card.rejected:
        typer.echo(f"rejected: {card.rejected} rows; {done.folder / 'rejected.jsonl'} says why")
    for note in done.notes:
        typer.echo(f"note: {note}")
    for name, counts in (("tasks", card.tasks), ("changed in texts", card.text_changes)):
        typer.echo(f"{name}: {', '.join(f'{count} {what}' for what, count in counts.items()) or 'nothing'}")


@app.command()
def convert_manifest(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Data in any known format.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT.jsonl", help="Where the manifest is written.")
    ],
) -> None:
    """Write data in any known format as a manifest of ours: JSON lines.

    Known are CSV, TSV, LJSpeech, folders with texts, train-higgs-audio, ms-swift, Qwen3-TTS and Hugging Face datasets
    (docs/data_formats.md). Recordings stay where they are.
    """
    from higgs_trainer.data.conversion import convert_manifest

    done = convert_manifest(data, output)
    typer.echo(f"{done.output}: {done.rows} rows, read as: {done.format_name}")
    for name, count in done.unused.items():
        typer.echo(f"note: {count} rows have a {name!r}, which a manifest has no place for")


@app.command(context_settings=OVERRIDES)
def check(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Send real batches through train, evaluate and predict, and print what was seen. Nothing is written."""
    from higgs_trainer.recipe import read_recipe

    settings = read_recipe(recipe, overrides or ())
    from higgs_trainer.run import check

    report = check(settings)
    _print_check(report)
    if not report.passed:
        raise typer.Exit(1)


def _print_check(report: "CheckReport") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console() if sys.stdout.isatty() else Console(width=160)  # a file is not folded at 80 columns
    console.print(report.cascade, markup=False, highlight=False, soft_wrap=True)
    table = Table("check", "result", "found", box=None)
    for result in report.results:
        outcome = "[green]passed[/green]" if result.passed else "[bold red]failed[/bold red]"
        found = result.found if result.passed else f"{result.found}. {result.remedy}"
        table.add_row(escape(result.name), outcome, escape(found))
    console.print(table)
    console.print(report.trainable, markup=False, highlight=False, soft_wrap=True)
    if report.loss is not None:
        console.print(f"loss of the first batch: {report.loss:.4f}")


@app.command(context_settings=OVERRIDES)
def train(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Train what RECIPE says. The output folder keeps the full recipe that ran.

    For example **higgs-trainer train recipe.yaml --learning_rate 1e-4**; on several GPUs
    **accelerate launch -m higgs_trainer train recipe.yaml**.
    """
    from higgs_trainer.recipe import read_recipe

    settings = read_recipe(
        recipe, overrides or ()
    )  # before the heavy imports: a typing mistake shows at once
    from higgs_trainer.run import train

    summary = train(settings)
    if summary.is_main:
        typer.echo(summary.cascade)
        typer.echo(f"{summary.output_dir}: done")


# What `generate` and `evaluate` share: whose voice, and how it speaks.
TextFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="What to say: a sentence a line, or JSON lines.")
]
CodecName = Annotated[str | None, typer.Option(metavar="NAME", help="Default: the model's own.")]
RefAudio = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="A clip of the voice to clone; again for [SPEAKER1], and so on."),
]
RefText = Annotated[
    list[str] | None, typer.Option(help="What is said in that clip; as often as --ref-audio.")
]
Scene = Annotated[str | None, typer.Option(help="Where the speaker is, or who, in words.")]
ReferenceInSystem = Annotated[
    bool, typer.Option("--reference-in-system", help="Put the clips behind the scene, without words.")
]
Language = Annotated[str, typer.Option(metavar="CODE", help="Decides where sentences end in a long text.")]
Temperature = Annotated[
    float | None, typer.Option(min=0.01, help="Lower is steadier. Default, here and below: the model's own.")
]
TopK = Annotated[int | None, typer.Option(min=0, help="Draw from the k likeliest codes; 0 from all.")]
TopP = Annotated[float | None, typer.Option(min=0.01, max=1.0, help="Draw from this share of likelihood.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed draws the same speech.")]
Greedy = Annotated[bool, typer.Option("--greedy", help="Always the likeliest code.")]
MaxSeconds = Annotated[float, typer.Option(min=0.1, help="Where speech that does not stop is cut.")]
PartSeconds = Annotated[
    float | None,
    typer.Option(min=0.1, help="A longer text is spoken in parts. Default: two thirds of --max-seconds."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts spoken at once; it changes no clip.")]
ComputeDtype = Annotated[Dtype, typer.Option(help="What the model computes in.")]
Device = Annotated[str | None, typer.Option(help="Default: a GPU where there is one.")]


@app.command()
def generate(
    model: Annotated[str, typer.Option(metavar="DIR", help="What training wrote, or a base model.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="For WAV files and index.jsonl.")
    ],
    text: Annotated[str | None, typer.Option(help="What to say.")] = None,
    text_file: TextFile = None,
    codec: CodecName = None,
    ref_audio: RefAudio = None,
    ref_text: RefText = None,
    scene: Scene = None,
    reference_in_system: ReferenceInSystem = False,
    language: Language = "en",
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = 0,
    greedy: Greedy = False,
    max_seconds: MaxSeconds = 30.0,
    part_seconds: PartSeconds = None,
    batch_size: BatchSize = 8,
    dtype: ComputeDtype = "float32",
    device: Device = None,
) -> None:
    """Speak a text, or each line of a file.

    A line of FILE is a sentence or, in JSON lines, an object with **text** and, where it likes, its own scene,
    ref_audio with ref_text, references, language, seed. A dialogue has **[SPEAKER0]** and so on in its text. The voice
    is the adapter's, the scene's, or the references'. Clips that the model did not end itself are named.
    """
    script = _read_script(text, text_file)
    voice = _read_voice(scene, ref_audio or [], ref_text or [], reference_in_system)
    from higgs_trainer.speech.clip_folder import check_is_empty
    from higgs_trainer.speech.sampling import Sampling
    from higgs_trainer.speech.speaker import load_speaker, speak_into_folder

    check_is_empty(output)
    speaker = load_speaker(
        model,
        codec=codec,
        voice=voice,
        sampling=Sampling(
            greedy=greedy,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            max_seconds=max_seconds,
            part_seconds=part_seconds,
            seed=seed,
        ),
        language=language,
        dtype=dtype,
        device=device,
    )
    requests = [speaker.build_request(line) for line in script]
    done = speak_into_folder(speaker, requests, output, batch_size=batch_size)
    typer.echo(
        f"{output}: {done.num_clips} spoken, {done.audio_seconds:.1f} s of audio in {done.seconds:.1f} s, "
        "in the order of index.jsonl"
    )
    if done.at_limit:
        typer.echo(
            f"warning: {len(done.at_limit)} of {done.num_clips} did not stop and were cut at {max_seconds:g} s: "
            + ", ".join(done.at_limit),
            err=True,
        )


@app.command()
def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL [MODEL]", help="One model, or two side by side; 'recordings': those of the texts."
        ),
    ],
    text_file: TextFile = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A held-out set, prepared, in place of --text-file.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="For speech and rows. Default: a new 'evaluation'."
        ),
    ] = None,
    other_voice: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Somebody else. Default: the other voices among the texts."),
    ] = None,
    asr: Annotated[
        str, typer.Option(metavar="NAME", help="A recogniser, or the folder of one.")
    ] = "whisper-tiny.en",
    quality: Annotated[bool, typer.Option(help="Predict quality (needs the extra 'evaluate').")] = True,
    json_line: Annotated[
        bool, typer.Option("--json", help="All figures once more, as one object in the last line.")
    ] = False,
    codec: CodecName = None,
    ref_audio: RefAudio = None,
    ref_text: RefText = None,
    scene: Scene = None,
    reference_in_system: ReferenceInSystem = False,
    language: Language = "en",
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = 0,
    greedy: Greedy = False,
    max_seconds: MaxSeconds = 30.0,
    part_seconds: PartSeconds = None,
    batch_size: BatchSize = 8,
    dtype: ComputeDtype = "float32",
    device: Device = None,
) -> None:
    """Let models speak the same texts, and say how well: words, voice, quality, with intervals and a paired test.

    A recogniser, a speaker encoder and a quality predictor judge every clip. Rows of FILE may have **audio**, a
    recording of the same sentence: then lengths and voices are compared with it.
    """
    if len(models) > 2:
        raise UserError(f"{len(models)} models; give one, or two to compare")
    if (text_file is None) == (data is None):
        raise UserError("on what? give --text-file or --data, one of them")
    script = [] if text_file is None else _read_script(None, text_file)
    voice = _read_voice(scene, ref_audio or [], ref_text or [], reference_in_system)
    from higgs_trainer.speech.comparison import Evaluation, build_tables, evaluate_models
    from higgs_trainer.speech.judged import load_judges
    from higgs_trainer.speech.sampling import Sampling

    output = _find_new_folder() if output is None else output
    evaluation = Evaluation(
        script,
        data,
        voice,
        Sampling(
            greedy=greedy,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            max_seconds=max_seconds,
            part_seconds=part_seconds,
            seed=seed,
        ),
        language=language,
        codec=codec,
        dtype=dtype,
        device=device,
        batch_size=batch_size,
    )
    judges = load_judges(asr, language=language, with_quality=quality)
    report = evaluate_models(models, evaluation, judges, output, other_voice=other_voice or (), seed=seed)
    _print_tables(build_tables(report))
    typer.echo(f"{output}: rows.jsonl has a row a clip, figures.json all figures")
    if json_line:
        typer.echo(json.dumps(report))


def _find_new_folder() -> Path:
    """'evaluation' or, where that is taken, 'evaluation-2' and so on."""
    names = ("evaluation" if number == 1 else f"evaluation-{number}" for number in itertools.count(1))
    return next(path for path in map(Path, names) if not path.exists())


def _print_tables(tables: "Sequence[Table]") -> None:
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=160)  # a file is not folded at 80 columns
    for table in tables:
        console.print(table)


def _read_script(text: str | None, text_file: Path | None) -> "list[ScriptLine]":
    """What to say, from the command line or a file."""
    if (text is None) == (text_file is None):
        raise UserError("what should be said? give --text or --text-file, one of them")
    from higgs_trainer.speech.script import ScriptLine, read_script

    if text_file is not None:
        return read_script(text_file)
    if text is None or not text.strip():
        raise UserError("--text is empty; write a sentence there")
    return [ScriptLine(text.strip())]


def _read_voice(
    scene: str | None, ref_audio: Sequence[Path], ref_text: Sequence[str], in_system: bool
) -> "Voice":
    """Each clip with its words. A clip without words, or words without a clip, would pair the rest wrongly."""
    if len(ref_audio) != len(ref_text) and (ref_text or not in_system):
        raise UserError(
            "--ref-audio and --ref-text are a recording and its words; "
            f"give as many of the one as of the other (here {len(ref_audio)} and {len(ref_text)})"
        )
    if in_system and not (ref_audio and scene):
        raise UserError("--reference-in-system puts clips behind a scene; give --ref-audio and --scene")
    from higgs_trainer.data.utterance import Clip
    from higgs_trainer.speech.script import Voice

    texts: Sequence[str | None] = ref_text or [None] * len(ref_audio)
    references = tuple(Clip(audio, words) for audio, words in zip(ref_audio, texts, strict=True))
    return Voice(scene, references, in_system)


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Output folders of training.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Default, for one run: report.html in its folder."
        ),
    ] = None,
) -> None:
    """Write one HTML page about a run, or several side by side: players, curves, guard, data, recipe.

    The page holds its audio and needs nothing else. What a folder lacks is said on it.
    """
    from higgs_trainer.speech.report.report_page import REPORT_NAME, write_report

    if output is None and len(runs) > 1:
        raise UserError("where should the page of several runs go? give --output FILE")
    written = write_report(runs, output or runs[0] / REPORT_NAME)
    typer.echo(f"{written.path}: {written.size_bytes / 1e6:.1f} MB")
    for note in written.notes:
        typer.echo(f"note: {note}")


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="The folder that training wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="For the merged model.")],
    base: Annotated[
        str | None, typer.Option(metavar="NAME", help="The base model, if it is not where the adapter says.")
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of the weights that are written. Default: the base's own.")
    ] = None,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Of one file of weights.")] = "5GB",
) -> None:
    """Write base and adapter as one model, which plain transformers opens."""
    from higgs_trainer.model.merging import merge_adapter
    from higgs_trainer.model_card import write_model_card

    merged = merge_adapter(
        adapter,
        output,
        base=base,
        dtype=dtype,
        max_shard_size=max_shard_size,
        describe=lambda folder: write_model_card(folder, earlier=adapter, name=output.name),
    )
    typer.echo(f"{output}: merged, in {merged.dtype}")
    if merged.left_out:
        typer.echo(f"left out, for transformers has no place for them: {', '.join(merged.left_out)}")


@app.command()
def card(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What training or merging wrote.")],
    name: Annotated[str | None, typer.Option(metavar="NAME", help="The model's name on the hub.")] = None,
) -> None:
    """Write the model card of a folder anew, from what is in it by now: an evaluation, perhaps.

    The note on consent and the licence that the old card has are kept; the rest is written again.
    """
    from higgs_trainer.model_card import write_model_card

    write_model_card(folder, name=name)
    typer.echo(f"{folder / 'README.md'}: written")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A checkpoint in either layout.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="For the other layout.")],
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Of one file of weights.")] = "5GB",
) -> None:
    """Turn a checkpoint of Boson's own layout into transformers', or back, weight by weight."""
    from higgs_trainer.model.conversion import convert_checkpoint

    converted = convert_checkpoint(source, output, max_shard_size=max_shard_size)
    typer.echo(f"{output}: {converted.num_weights} weights, {converted.model_type}")
    if converted.left_out:
        typer.echo(f"left out, for they are computed: {', '.join(converted.left_out)}")


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where it is written.")
    ] = Path("runs/demo"),
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train the small model from random weights.")
    ] = False,
) -> None:
    """Teach a small model a new voice and listen: minutes, offline, on a CPU."""
    from higgs_trainer.demo import run_demo

    run_demo(output, from_scratch=from_scratch)
