"""prepare, convert-manifest: from files to a dataset."""

from pathlib import Path
from typing import Annotated

import typer

from higgs_trainer.cli.application import app


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
    from higgs_trainer.corpus.measurements import Limits
    from higgs_trainer.corpus.prepare import prepare
    from higgs_trainer.manifest.text import TextRules, read_tags

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
    from higgs_trainer.manifest.conversion import convert_manifest

    done = convert_manifest(data, output)
    typer.echo(f"{done.output}: {done.rows} rows, read as: {done.format_name}")
    for name, count in done.unused.items():
        typer.echo(f"note: {count} rows have a {name!r}, which a manifest has no place for")
