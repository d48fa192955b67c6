"""generate and report: what a model says, and what is to be said of it."""

from pathlib import Path
from typing import Annotated

import typer

from higgs_trainer.cli.application import app
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
from higgs_trainer.run_folder import REPORT_FILE


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
    script = read_texts(text, text_file)
    voice = read_voice(scene, ref_audio or [], ref_text or [], reference_in_system)
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
