"""evaluate: score the speech of one model or two."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from higgs_trainer.busy_machine import note_if_busy
from higgs_trainer.cli.application import SPEECH_PANEL, app
from higgs_trainer.cli.strict_command import StrictCommand
from higgs_trainer.cli.voice_options import (
    BatchSize,
    CodecName,
    ComputeDtype,
    Device,
    Greedy,
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
    build_voice,
    check_sampling,
    read_texts,
)
from higgs_trainer.errors import UserError
from higgs_trainer.outputs import is_unfinished
from higgs_trainer.run_folder import (
    BEFORE,
    EVALUATION_FOLDER,
    FIGURES_FILE,
    RECORDINGS,
    ROWS_FILE,
    is_run,
)
from higgs_trainer.terminal import echo, open_console, quiet_libraries


@app.command(cls=StrictCommand, rich_help_panel=SPEECH_PANEL)
def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="One model, or two to compare. Write **recordings** to score the recordings of the texts too, which "
            "show how well a model could do.",
        ),
    ],
    text_file: TextFile = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Evaluate the rows of this prepared dataset instead of --text-file."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder for clips, rows and figures; nothing is overwritten. Default: RUN/evaluation for a run "
            "folder, also with its base model, else a new folder 'evaluation' in the working directory.",
        ),
    ] = None,
    other_voice: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Also compare the speech with this recording of another person; may be repeated. "
            "Default: the other voices among the texts.",
        ),
    ] = None,
    asr: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Speech recogniser that transcribes the clips: whisper-tiny.en, whisper-base, or a folder or hub name "
            "of a model for faster-whisper or transformers. Default: whisper-tiny.en for English, else whisper-base.",
        ),
    ] = None,
    asr_language: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CODE",
            help="A language that the recogniser knows, if its files do not say so; may be repeated.",
        ),
    ] = None,
    words: Annotated[
        bool,
        typer.Option(help="Judge words with a speech recogniser. It must know the language of every text."),
    ] = True,
    quality: Annotated[
        bool, typer.Option(help="Predict the quality of each clip (needs the extra 'evaluate').")
    ] = True,
    spell_digits: Annotated[
        bool,
        typer.Option(
            "--spell-digits",
            help="Compare numbers digit by digit, for English texts that consist of digits, as in the demo.",
        ),
    ] = False,
    json_line: Annotated[
        bool, typer.Option("--json", help="Print all figures as one JSON object on the last line.")
    ] = False,
    codec: CodecName = None,
    ref_audio: RefAudio = None,
    ref_text: RefText = None,
    scene: Scene = None,
    reference_in_system: ReferenceInSystem = False,
    language: Annotated[
        str | None,
        typer.Option(
            metavar="CODE",
            help="Language of the texts whose row names none, such as nl or cs. It decides what the recogniser listens "
            "for, how words are compared, and where sentences of a long text end. Default: en.",
        ),
    ] = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = 0,
    greedy: Greedy = False,
    max_seconds: MaxSeconds = 30.0,
    part_seconds: PartSeconds = None,
    batch_size: BatchSize = 8,
    dtype: ComputeDtype = "auto",
    device: Device = None,
) -> None:
    """Generate the same texts with one model or two, and score the speech.

    A speech recogniser, a speaker encoder and a quality predictor judge every clip. Each text is heard in the language
    of its row; a recogniser that does not know it is refused before anything is generated. Figures have 95% intervals,
    and two models are compared by a paired test. A row of FILE may have **audio**, a recording of the same sentence:
    its length and voice are then compared with the model's. The report page, the model card and `merge` read the
    figures in RUN/evaluation.
    """
    if not words and (
        given := [name for name, value in (("--asr", asr), ("--asr-language", asr_language)) if value]
    ):
        raise UserError(f"--no-words judges no words, so {given[0]} has no effect. Leave out one of them.")
    if (given_models := len(models) - models.count(RECORDINGS)) > 2 or models.count(RECORDINGS) > 1:
        raise UserError(
            f"{given_models} models were given, and 'recordings' {models.count(RECORDINGS)} times. Give one model, or "
            "two to compare, and 'recordings' at most once."
        )
    if (text_file is None) == (data is None):
        raise UserError("Give the texts to evaluate: either --text-file or --data.")
    if data is not None and (scene or ref_audio or ref_text or reference_in_system):
        raise UserError(
            "--data has the voice of each row. Leave out --scene, --ref-audio, --ref-text and --reference-in-system."
        )
    check_sampling(
        greedy=greedy,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        max_seconds=max_seconds,
        part_seconds=part_seconds,
    )
    script = [] if text_file is None else read_texts((), text_file)
    voice = build_voice(scene, ref_audio or [], ref_text or [], reference_in_system)
    from higgs_trainer.evaluation.comparison import EvaluationSettings, check_output, evaluate_models
    from higgs_trainer.evaluation.judging import load_judges
    from higgs_trainer.evaluation.languages import LANGUAGE_OPTION, describe_unnamed_languages
    from higgs_trainer.evaluation.tables import build_tables
    from higgs_trainer.speech.sampling import Sampling

    quiet_libraries()
    note_if_busy()
    output = _choose_output(models) if output is None else output
    settings = EvaluationSettings(
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
    check_output(models, settings, output, other_voice=other_voice or ())
    languages = settings.count_languages()
    if words and (note := describe_unnamed_languages(settings.list_languages(), language, LANGUAGE_OPTION)):
        echo(note, to_stderr=True)
    judges = load_judges(
        asr,
        language=languages,
        recogniser_languages=asr_language or (),
        with_words=words,
        with_quality=quality,
        digits_spelled=spell_digits,
    )
    report = evaluate_models(models, settings, judges, output, other_voice=other_voice or (), seed=seed)
    console = open_console()
    for table in build_tables(report):
        console.print(table)
    echo(f"{output}: {FIGURES_FILE} holds all figures, {ROWS_FILE} a row for each clip")
    if json_line:
        echo(json.dumps(report), is_prose=False)


def _choose_output(models: Sequence[str]) -> Path:
    """Return ``RUN/evaluation`` for a run folder, also with its base model and the recordings.

    For anything else: 'evaluation', 'evaluation-2' ... in the working directory.
    """
    runs = [model for model in models if model != RECORDINGS and is_run(Path(model))]
    others = [model for model in models if model not in (RECORDINGS, *runs)]
    output = Path(runs[0] if runs else ".") / EVALUATION_FOLDER
    if len(runs) == 1 and all(_is_base(other, output) for other in others):
        if output.exists() and not is_unfinished(output):
            raise UserError(
                f"{output} exists. Remove or rename it to replace this run's figures, or name another folder with "
                "--output."
            )
        return output
    names = (
        EVALUATION_FOLDER if number == 1 else f"{EVALUATION_FOLDER}-{number}" for number in itertools.count(1)
    )
    return next(path for path in map(Path, names) if not path.exists() or is_unfinished(path))


def _is_base(model: str, output: Path) -> bool:
    """Whether a model is the base model of the run that an evaluation folder belongs to."""
    from higgs_trainer.evaluation.comparison import find_role

    return find_role(model, output) == BEFORE
