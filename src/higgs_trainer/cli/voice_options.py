"""Options that `generate` and `evaluate` share: the texts, the voice, and how it speaks."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from higgs_trainer.cli.application import Dtype
from higgs_trainer.errors import UserError

if TYPE_CHECKING:
    from higgs_trainer.manifest.script import ScriptLine, Voice

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


def read_texts(text: str | None, text_file: Path | None) -> "list[ScriptLine]":
    """What to say, from the command line or a file."""
    if (text is None) == (text_file is None):
        raise UserError("what should be said? give --text or --text-file, one of them")
    from higgs_trainer.manifest.script import ScriptLine, read_script

    if text_file is not None:
        return read_script(text_file)
    if text is None or not text.strip():
        raise UserError("--text is empty; write a sentence there")
    return [ScriptLine(text.strip())]


def read_voice(
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
