"""generate: turn texts into speech with a trained model."""

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
    build_voice,
    check_sampling,
    read_texts,
)
from higgs_trainer.errors import count_noun
from higgs_trainer.run_folder import CLIP_INDEX_FILE, name_clip
from higgs_trainer.terminal import echo, quiet_libraries, shorten_path


@app.command(cls=StrictCommand, rich_help_panel=SPEECH_PANEL)
def generate(
    model: Annotated[
        str,
        typer.Option(
            metavar="DIR",
            help="Model to use: the output folder of a training run, a merged model, a base model or a hub name.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="DIR", help=f"Write WAV files and {CLIP_INDEX_FILE} to this folder."
        ),
    ],
    text: Annotated[
        list[str] | None, typer.Option(help="Generate this text; repeat the option for further clips.")
    ] = None,
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
    dtype: ComputeDtype = "auto",
    device: Device = None,
) -> None:
    """Generate speech for a text, or for each line of a file.

    A line of FILE is a sentence or, in JSON lines, an object with **text** and optionally its own scene, ref_audio with
    ref_text, references, language and seed. Mark the turns of a dialogue with **[SPEAKER0]**, **[SPEAKER1]** in its
    text. The voice is that of the references if there are any, else that of the scene or the adapter. At the end, the
    command lists the clips that were cut at --max-seconds.
    """
    check_sampling(
        greedy=greedy,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        max_seconds=max_seconds,
        part_seconds=part_seconds,
    )
    script = read_texts(text or (), text_file)
    voice = build_voice(scene, ref_audio or [], ref_text or [], reference_in_system)
    from higgs_trainer.manifest.languages import find_code
    from higgs_trainer.model.model_folder import list_inputs
    from higgs_trainer.outputs import Input, check_apart, check_can_fill
    from higgs_trainer.speech.sampling import Sampling
    from higgs_trainer.speech.speech_model import generate_into_folder, load_speech_model

    quiet_libraries()
    note_if_busy()
    files = [clip.audio for line in script for clip in line.clips] + (ref_audio or [])
    files += [] if text_file is None else [text_file]
    check_apart(
        "--output", output, [*list_inputs(model, codec), *(Input("an input", file) for file in files)]
    )
    check_can_fill(output)
    speech_model = load_speech_model(
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
        language=find_code(language),
        dtype=dtype,
        device=device,
    )
    requests = [speech_model.build_request(line) for line in script]
    done = generate_into_folder(speech_model, requests, output, batch_size=batch_size)
    listed = "it" if done.num_clips == 1 else "them in the order of the texts"
    echo(
        f"{output}: {count_noun(done.num_clips, 'clip')}, {done.audio_seconds:.1f} s of audio generated in "
        f"{done.seconds:.1f} s; {CLIP_INDEX_FILE} lists {listed}"
    )
    if done.at_limit:
        echo(
            f"warning: the model did not end {len(done.at_limit)} of {count_noun(done.num_clips, 'clip')}, cut at "
            f"--max-seconds {max_seconds:g}: " + ", ".join(done.at_limit),
            to_stderr=True,
        )
    echo(f"Listen: {shorten_path(output / name_clip(0))}")
