"""evaluate: judge the speech of one model or two."""

import itertools
import json
from pathlib import Path
from typing import Annotated

import typer

from higgs_trainer.cli.application import SPEECH_PANEL, app, open_console
from higgs_trainer.cli.voice_options import (
    BatchSize,
    CodecName,
    ComputeDtype,
    Device,
    Greedy,
    Language,
    MaxSeconds,
    PartSeconds,
    RefAudio,
    ReferenceInSystem,
    RefText,
    Scene,
    Seed,
    Temperature,
    TextFile,
    TopK,
    TopP,
    read_texts,
    read_voice,
)
from higgs_trainer.errors import UserError
from higgs_trainer.run_folder import EVALUATION_FOLDER, FIGURES_FILE, ROWS_FILE


@app.command(rich_help_panel=SPEECH_PANEL)
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
    script = [] if text_file is None else read_texts(None, text_file)
    voice = read_voice(scene, ref_audio or [], ref_text or [], reference_in_system)
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
