"""Options that `generate` and `evaluate` share: the texts, the voice and the sampling."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from higgs_trainer.cli.application import Dtype
from higgs_trainer.errors import UserError

if TYPE_CHECKING:
    from higgs_trainer.manifest.utterance import Utterance, Voice

VOICE_PANEL = "Voice"
SAMPLING_PANEL = "Sampling"
MACHINE_PANEL = "Model and machine"

TextFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Generate every line of this file: plain sentences, or JSON lines."),
]
CodecName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Decode with this codec: a folder or a name on the hub. Default: the codec in the model's folder.",
        rich_help_panel=MACHINE_PANEL,
    ),
]
RefAudio = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="Clone the voice of this recording; repeat the option for [SPEAKER1] and further speakers.",
        rich_help_panel=VOICE_PANEL,
    ),
]
RefText = Annotated[
    list[str] | None,
    typer.Option(
        help="Transcript of a reference recording; give one for each --ref-audio, in the same order.",
        rich_help_panel=VOICE_PANEL,
    ),
]
Scene = Annotated[
    str | None,
    typer.Option(help="Describe the speaker or the surroundings in words.", rich_help_panel=VOICE_PANEL),
]
ReferenceInSystem = Annotated[
    bool,
    typer.Option(
        "--reference-in-system",
        help="Put the references into the system message, after the scene and without transcripts.",
        rich_help_panel=VOICE_PANEL,
    ),
]
Language = Annotated[
    str,
    typer.Option(
        metavar="CODE",
        help="Language of the texts, such as en or de; it decides where sentences of a long text end and, in evaluate, "
        "how texts are normalised.",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        help="Sampling temperature; lower values are steadier. Default: the model's own.",
        rich_help_panel=SAMPLING_PANEL,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Sample from the k likeliest codes; 0 samples from all. Default: the model's own.",
        rich_help_panel=SAMPLING_PANEL,
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        max=1.0,
        help="Sample from the likeliest codes that reach this total probability. Default: the model's own.",
        rich_help_panel=SAMPLING_PANEL,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0,
        help="Seed of the sampling; the same seed generates the same speech.",
        rich_help_panel=SAMPLING_PANEL,
    ),
]
Greedy = Annotated[
    bool,
    typer.Option(
        "--greedy", help="Take the likeliest code instead of sampling.", rich_help_panel=SAMPLING_PANEL
    ),
]
MaxSeconds = Annotated[
    float,
    typer.Option(
        min=0.1,
        help="Cut a clip at this length if the model has not ended it (seconds).",
        rich_help_panel=SAMPLING_PANEL,
    ),
]
PartSeconds = Annotated[
    float | None,
    typer.Option(
        min=0.1,
        help="Split a longer text into parts of about this length (seconds). Default: two thirds of --max-seconds.",
        rich_help_panel=SAMPLING_PANEL,
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        min=1,
        help="Number of texts to generate at once. In float32 it does not change the result.",
        rich_help_panel=MACHINE_PANEL,
    ),
]
ComputeDtype = Annotated[
    Dtype, typer.Option(help="Data type of the model's weights.", rich_help_panel=MACHINE_PANEL)
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Device to run on, such as cpu or cuda:1. Default: a GPU if there is one.",
        rich_help_panel=MACHINE_PANEL,
    ),
]


def read_texts(text: str | None, text_file: Path | None) -> "list[Utterance]":
    """Read the texts to generate from the command line or from a file.

    Raises:
        UserError: neither or both of the two are given, or the text or the file cannot be used.
    """
    if (text is None) == (text_file is None):
        raise UserError("Give the text to generate with either --text TEXT or --text-file FILE.")
    from higgs_trainer.manifest.row_checker import SENTENCES
    from higgs_trainer.manifest.rows import read_rows
    from higgs_trainer.manifest.utterance import Utterance

    if text_file is not None:
        return read_rows(text_file, SENTENCES)
    if text is None or not text.strip():
        raise UserError("--text is empty; give it a sentence.")
    return [Utterance(text.strip())]


def build_voice(
    scene: str | None, ref_audio: Sequence[Path], ref_text: Sequence[str], in_system: bool
) -> "Voice":
    """Build the voice that the options describe, each reference with its transcript.

    Raises:
        UserError: the numbers of recordings and transcripts differ, or the references need a scene.
    """
    if len(ref_audio) != len(ref_text) and (ref_text or not in_system):
        raise UserError(
            "Each --ref-audio needs its transcript in --ref-text; "
            f"give as many of one as of the other (here {len(ref_audio)} and {len(ref_text)})."
        )
    if in_system and not (ref_audio and scene):
        raise UserError("--reference-in-system puts references after a scene; give --ref-audio and --scene.")
    from higgs_trainer.manifest.utterance import Clip, Voice

    texts: Sequence[str | None] = ref_text or [None] * len(ref_audio)
    references = tuple(Clip(audio, words) for audio, words in zip(ref_audio, texts, strict=True))
    return Voice(scene, references, in_system)
