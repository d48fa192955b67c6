"""generate, evaluate, report: what a model says, and what is to be said of it."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from higgs_trainer.cli.application import Dtype, app, open_console
from higgs_trainer.errors import UserError
from higgs_trainer.run_folder import EVALUATION_FOLDER, FIGURES_FILE, REPORT_FILE, ROWS_FILE

if TYPE_CHECKING:
    from higgs_trainer.manifest.script import ScriptLine, Voice

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
    from higgs_trainer.speech.speech_model import generate_into_folder, load_speech_model

    check_is_empty(output)
    speaker = load_speech_model(
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
    done = generate_into_folder(speaker, requests, output, batch_size=batch_size)
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
    from higgs_trainer.evaluation.comparison import Evaluation, build_tables, evaluate_models
    from higgs_trainer.evaluation.judging import load_judges
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
    console = open_console()
    for table in build_tables(report):
        console.print(table)
    typer.echo(f"{output}: {ROWS_FILE} has a row a clip, {FIGURES_FILE} all figures")
    if json_line:
        typer.echo(json.dumps(report))


def _find_new_folder() -> Path:
    """'evaluation' or, where that is taken, 'evaluation-2' and so on."""
    names = (
        EVALUATION_FOLDER if number == 1 else f"{EVALUATION_FOLDER}-{number}" for number in itertools.count(1)
    )
    return next(path for path in map(Path, names) if not path.exists())


def _read_script(text: str | None, text_file: Path | None) -> "list[ScriptLine]":
    """What to say, from the command line or a file."""
    if (text is None) == (text_file is None):
        raise UserError("what should be said? give --text or --text-file, one of them")
    from higgs_trainer.manifest.script import ScriptLine, read_script

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
    from higgs_trainer.manifest.script import Voice
    from higgs_trainer.manifest.utterance import Clip

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
    from higgs_trainer.report.run_page import write_report

    if output is None and len(runs) > 1:
        raise UserError("where should the page of several runs go? give --output FILE")
    written = write_report(runs, output or runs[0] / REPORT_FILE)
    typer.echo(f"{written.path}: {written.size_bytes / 1e6:.1f} MB")
    for note in written.notes:
        typer.echo(f"note: {note}")
