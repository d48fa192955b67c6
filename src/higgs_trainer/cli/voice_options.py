"""Options that `generate` and `evaluate` share: the texts, the voice and the sampling."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from higgs_trainer.cli.application import Dtype
from higgs_trainer.errors import UserError
from higgs_trainer.limits import GENERATOR_SEEDS, LARGEST_BATCH, LARGEST_COUNT, LONGEST_SPEECH_SECONDS

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
        help="Language of the texts, such as en or de; it decides where sentences of a long text end.",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        max=100.0,
        help="Sampling temperature; lower values are steadier. Default: the model's own, else 0.3.",
        rich_help_panel=SAMPLING_PANEL,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=LARGEST_COUNT,
        help="Sample from the k likeliest codes; 0 samples from all. Default: the model's own, else 50.",
        rich_help_panel=SAMPLING_PANEL,
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        max=1.0,
        help="Sample from the likeliest codes that reach this total probability. Default: the model's own, else 0.95.",
        rich_help_panel=SAMPLING_PANEL,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0,
        max=GENERATOR_SEEDS[-1],
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
        max=LONGEST_SPEECH_SECONDS,
        help="Cut a clip at this length if the model has not ended it (seconds).",
        rich_help_panel=SAMPLING_PANEL,
    ),
]
PartSeconds = Annotated[
    float | None,
    typer.Option(
        min=0.1,
        max=LONGEST_SPEECH_SECONDS,
        help="Split a longer text into parts of about this length (seconds). Default: two thirds of --max-seconds.",
        rich_help_panel=SAMPLING_PANEL,
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        min=1,
        max=LARGEST_BATCH,
        help="Number of texts to generate at once. In float32 it does not change the result.",
        rich_help_panel=MACHINE_PANEL,
    ),
]
ComputeDtype = Annotated[
    Literal["auto", Dtype],
    typer.Option(
        help="Data type of the model's weights; auto is bfloat16 if the model is stored in it, else float32.",
        rich_help_panel=MACHINE_PANEL,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Device to run on, such as cpu or cuda:1. Default: a GPU if there is one.",
        rich_help_panel=MACHINE_PANEL,
    ),
]


def read_texts(texts: Sequence[str], text_file: Path | None) -> "list[Utterance]":
    """Read the texts to generate from the command line or from a file.

    Raises:
        UserError: neither or both of the two are given, or the text or the file cannot be used.
    """
    if bool(texts) == (text_file is not None):
        raise UserError("Give the texts to generate with either --text TEXT or --text-file FILE.")
    from higgs_trainer.manifest.row_checker import SENTENCES
    from higgs_trainer.manifest.rows import read_rows
    from higgs_trainer.manifest.utterance import Utterance

    if text_file is not None:
        return read_rows(text_file, SENTENCES)
    for text in texts:
        _check_text("--text", text)
    return [Utterance(text.strip()) for text in texts]


def _check_text(option: str, text: str) -> None:
    """Check a text as those of a manifest are checked.

    Raises:
        UserError: it is empty, has no word, or contains what cannot be in a prompt.
    """
    from higgs_trainer.manifest.text import find_prompt_problem, is_speakable

    if not text.strip():
        raise UserError(f"{option} is empty. Give it a sentence.")
    if problem := find_prompt_problem(text):
        raise UserError(f"{option} {problem[0]}. {problem[1]}")
    if not is_speakable(text):
        raise UserError(f"{option} contains no word. Write what is said, or a tag such as [laugh].")


def check_sampling(
    *,
    greedy: bool,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    max_seconds: float,
    part_seconds: float | None,
) -> None:
    """Check that no option makes another one ineffective.

    Raises:
        UserError: one does.
    """
    given = {"--temperature": temperature, "--top-k": top_k, "--top-p": top_p}
    drawn = [option for option, value in given.items() if value is not None]
    if greedy and drawn:
        raise UserError(f"--greedy does not sample, so {drawn[0]} has no effect. Leave out one of them.")
    if part_seconds is not None and part_seconds > max_seconds:
        raise UserError(
            f"--part-seconds {part_seconds:g} is more than --max-seconds {max_seconds:g}, so each part would be cut. "
            "Lower it, or raise --max-seconds."
        )


def build_voice(
    scene: str | None, ref_audio: Sequence[Path], ref_text: Sequence[str], in_system: bool
) -> "Voice":
    """Build the voice that the options describe, each reference with its transcript.

    Raises:
        UserError: the numbers of recordings and transcripts differ, the references need a scene, a text cannot be in a
            prompt, or a recording is given twice with other words.
    """
    for option, words in [("--scene", scene), *(("--ref-text", words) for words in ref_text)]:
        if words is not None:
            _check_text(option, words)
    if len(ref_audio) != len(ref_text) and (ref_text or not in_system):
        raise UserError(
            "Each --ref-audio needs its transcript in --ref-text; "
            f"give as many of one as of the other (here {len(ref_audio)} and {len(ref_text)})."
        )
    if in_system and not (ref_audio and scene):
        raise UserError("--reference-in-system puts references after a scene; give --ref-audio and --scene.")
    from higgs_trainer.manifest.utterance import Clip, Voice, find_conflicting_clip

    texts: Sequence[str | None] = ref_text or [None] * len(ref_audio)
    references = tuple(Clip(audio, words) for audio, words in zip(ref_audio, texts, strict=True))
    if (index := find_conflicting_clip(references)) is not None:
        raise UserError(
            f"--ref-audio {ref_audio[index]} is given twice, with other words. Correct one --ref-text."
        )
    return Voice(scene, references, in_system)
