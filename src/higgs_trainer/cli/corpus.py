"""prepare, convert-manifest: make a dataset or a manifest from recordings and transcripts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from higgs_trainer.busy_machine import note_if_busy
from higgs_trainer.cli.application import DATA_PANEL, app
from higgs_trainer.cli.strict_command import StrictCommand
from higgs_trainer.errors import UserError, count_noun
from higgs_trainer.terminal import echo, echo_next, quiet_libraries

if TYPE_CHECKING:
    from higgs_trainer.corpus.prepare import PreparedSummary

REFERENCES, TEXTS, LIMITS = "References", "Texts", "Limits"

DataArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="A manifest (JSON lines), CSV, TSV, LJSpeech, a folder of recordings and text files, a Hugging Face "
        "dataset, or the data of train-higgs-audio, ms-swift or Qwen3-TTS.",
        show_default=False,
    ),
]


ColumnsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FIELD=COLUMN,...",
        help="Read these columns of a table, such as audio=filename,text=words. Fields that are not named are found by "
        "their usual names.",
        show_default=False,
    ),
]


@app.command(cls=StrictCommand, rich_help_panel=DATA_PANEL)
def prepare(
    manifest: DataArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Write the prepared dataset to this folder.")
    ],
    codec: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Encode with this codec: a folder, a hub name, or 'embedded' for the small codec in this package. "
            "Give exactly one of --codec, --recipe and --model.",
        ),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Encode with the codec of this recipe.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="DIR_OR_NAME", help="Encode with the codec of this model, a folder or a hub name."
        ),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            metavar="N%|N",
            help="Hold out this share or number of the rows. DIR then has two datasets, train and held_out. Each "
            "speaker gives its share, and rows with the same words or recording stay on one side.",
            show_default=False,
        ),
    ] = None,
    held_out_seed: Annotated[
        int | None,
        typer.Option(help="Seed of the random choice that --held-out makes. Default: 0.", show_default=False),
    ] = None,
    columns: ColumnsOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the dataset if the output folder already holds one.")
    ] = False,
    max_rejected: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="Leave out up to N bad rows, and list them in rejected.jsonl."),
    ] = 0,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html", help="Write an HTML page about the corpus, with audio players, to this file."
        ),
    ] = None,
    loudness_lufs: Annotated[
        float | None,
        typer.Option(
            metavar="LUFS",
            # BS.1770 takes anything quieter for silence, and the recordings would become that.
            min=-70.0,
            max=0.0,
            help="Normalise every recording to this loudness, such as -23 (needs the extra 'loudness').",
        ),
    ] = None,
    batch_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Encode this much audio in one batch (seconds).")
    ] = 60.0,
    pair_references: Annotated[
        bool,
        typer.Option(
            "--pair-references",
            help="Give each row another recording of the same speaker as its reference.",
            rich_help_panel=REFERENCES,
        ),
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Seed of the random choice that --pair-references makes. Default: 0.",
            rich_help_panel=REFERENCES,
        ),
    ] = None,
    allow_own_reference: Annotated[
        bool,
        typer.Option(
            "--allow-own-reference",
            help="Accept rows whose reference is their own recording.",
            rich_help_panel=REFERENCES,
        ),
    ] = False,
    expand_numbers: Annotated[
        bool,
        typer.Option(
            "--expand-numbers",
            help="Write whole numbers as words in the language of the row (needs the extra 'numbers').",
            rich_help_panel=TEXTS,
        ),
    ] = False,
    tags: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Replace control tags in the texts as this JSON file says, an object of tags and replacements.",
            rich_help_panel=TEXTS,
        ),
    ] = None,
    min_seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0.1,
            help="Reject recordings shorter than this (seconds).",
            rich_help_panel=LIMITS,
        ),
    ] = 0.1,
    max_seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0.1,
            help="Reject recordings longer than this (seconds).",
            rich_help_panel=LIMITS,
        ),
    ] = 120.0,
    min_sample_rate_hz: Annotated[
        int,
        typer.Option(
            metavar="HZ", help="Reject recordings with a lower sample rate (Hz).", rich_help_panel=LIMITS
        ),
    ] = 8_000,
    min_peak_dbfs: Annotated[
        float,
        typer.Option(
            metavar="DBFS", help="Reject recordings whose peak is below this (dBFS).", rich_help_panel=LIMITS
        ),
    ] = -50.0,
    max_clipped_percent: Annotated[
        float,
        typer.Option(
            metavar="PERCENT",
            help="Reject recordings with more samples than this at full scale (percent).",
            rich_help_panel=LIMITS,
        ),
    ] = 1.0,
    max_pace_factor: Annotated[
        float,
        typer.Option(
            metavar="FACTOR",
            min=1.0,
            help="Reject recordings that are this many times faster or slower than the median of their language.",
            rich_help_panel=LIMITS,
        ),
    ] = 4.0,
    allow_outside: Annotated[
        bool,
        typer.Option(
            "--allow-outside",
            help="Accept recordings outside the folder of the manifest.",
            rich_help_panel=LIMITS,
        ),
    ] = False,
    allow_duplicates: Annotated[
        bool,
        typer.Option(
            "--allow-duplicates", help="Accept rows that occur more than once.", rich_help_panel=LIMITS
        ),
    ] = False,
) -> None:
    """Check recordings and transcripts, and encode them once.

    A manifest has JSON lines with **audio** (a path relative to the manifest's folder) and **text**. Optional fields
    are speaker, language, scene, task, reward, seed, ref_audio, ref_text, references and turns. All errors are reported
    together, with file and line, before anything is written. If a run was killed, the same command resumes it. Under
    **accelerate launch -m higgs_trainer prepare ...** each process encodes its share.
    """
    if seed is not None and not pair_references:
        raise UserError(
            "--seed has an effect only with --pair-references. Add that option, or leave out --seed."
        )
    if held_out_seed is not None and held_out is None:
        raise UserError(
            "--held-out-seed has an effect only with --held-out. Add that option, or leave out --held-out-seed."
        )
    if min_seconds > max_seconds:
        raise UserError(
            f"--min-seconds {min_seconds:g} is more than --max-seconds {max_seconds:g}, so every recording would be "
            "rejected. Lower it, or raise --max-seconds."
        )
    from higgs_trainer.corpus.measurements import Limits
    from higgs_trainer.corpus.prepare import prepare
    from higgs_trainer.manifest.formats.columns import parse_columns
    from higgs_trainer.manifest.text import TextRules, read_tags
    from higgs_trainer.outputs import Input, check_apart

    quiet_libraries()
    note_if_busy()
    inputs = [("the recipe", recipe), ("the model", model), ("the tags", tags)]
    check_apart("--output", output, [Input(what, path) for what, path in inputs if path is not None])
    done = prepare(
        manifest,
        output,
        codec=_choose_codec(codec, recipe, model),
        held_out=held_out,
        held_out_seed=held_out_seed or 0,
        columns=parse_columns(columns or ()),
        overwrite=overwrite,
        allow_outside=allow_outside,
        allow_own_reference=allow_own_reference,
        text_rules=TextRules(expand_numbers, read_tags(tags) if tags else {}),
        pair_seed=(seed or 0) if pair_references else None,
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
    _describe(done, report)
    if recipe is not None:
        echo_next("Run next", ["higgs-trainer", "check", recipe])


def _describe(done: "PreparedSummary", report: Path | None) -> None:
    """Say what was written."""
    from higgs_trainer.dataset.prepared import REJECTED_NAME

    card = done.card
    utterances = count_noun(card.utterances, "utterance")
    echo(f"{done.folder}: {utterances}, {card.hours:.2f} h, codec {card.codec_name}")
    if done.held_out is not None:
        held = done.held_out.card
        echo(f"{done.held_out.folder}: {count_noun(held.utterances, 'utterance')}, {held.hours:.2f} h")
    if done.resumed:
        echo(f"resumed: {count_noun(done.resumed, 'recording')} had been encoded already")
    if card.rejected:
        echo(
            f"rejected: {count_noun(card.rejected, 'row')}; {done.folder / REJECTED_NAME} has the "
            f"{'reason' if card.rejected == 1 else 'reasons'}"
        )
    if report is not None:
        echo(f"page: {report}")
    for note in done.notes:
        echo(f"note: {note}")
    for name, counts in (("tasks", card.tasks), ("changed in texts", card.text_changes)):
        if counts:
            echo(f"{name}: {', '.join(f'{count:,} {what}' for what, count in counts.items())}")


def _choose_codec(codec: str | None, recipe: Path | None, model: str | None) -> str:
    """Return the name or folder of the codec that the user chose by one of three options.

    There is no default: codes of the wrong codec train a model without an error.
    """
    if [codec, recipe, model].count(None) != 2:
        raise UserError(
            "Choose the codec with exactly one of --codec NAME (such as bosonai/higgs-audio-v2-tokenizer), "
            "--recipe FILE (the recipe that you will train) or --model DIR_OR_NAME (the model that you will train)."
        )
    if codec is not None:
        return codec
    from higgs_trainer.model.model_folder import find_codec

    if recipe is not None:
        from higgs_trainer.recipe.reading import read_recipe

        settings = read_recipe(recipe).model
        return settings.codec or find_codec(settings.name_or_path)
    assert model is not None
    return find_codec(model)


@app.command(cls=StrictCommand, rich_help_panel=DATA_PANEL)
def convert_manifest(
    data: DataArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT.jsonl", help="Write the manifest to this file.")
    ],
    columns: ColumnsOption = None,
) -> None:
    """Convert data of another format into a manifest.

    The manifest names the recordings where they are. They are not copied.
    """
    from higgs_trainer.manifest.conversion import convert_manifest
    from higgs_trainer.manifest.formats.columns import parse_columns

    done = convert_manifest(data, output, columns=parse_columns(columns or ()))
    echo(f"{done.output}: {count_noun(done.rows, 'row')}, read as: {done.format_name}")
    for name, count in done.unused.items():
        echo(f"note: {count_noun(count, 'row')} with a field {name!r}, which a manifest does not have")
