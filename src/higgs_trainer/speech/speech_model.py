"""A trained model that speaks, in three lines:

model = load_speech_model("runs/my_voice")
speech = model.generate("Hello there.")
speech.write("hello.wav")
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from higgs_trainer.audio.codec import Codec
from higgs_trainer.audio.files import read_audio, write_audio
from higgs_trainer.dataset.context import Context, PromptClip
from higgs_trainer.errors import UserError
from higgs_trainer.manifest.utterance import Clip, Utterance, Voice
from higgs_trainer.model.loading import Checkpoint, load_codec_of, load_trained
from higgs_trainer.run_folder import name_clip
from higgs_trainer.speech.clip_folder import ClipFolder, GeneratedCodes, check_is_empty, decode_generated
from higgs_trainer.speech.generate import Request, generate_codes
from higgs_trainer.speech.sampling import Sampling


@dataclass(frozen=True)
class GeneratedSpeech:
    """What was said: a waveform (S,) at ``sample_rate_hz``. ``stopped``: the model ended it itself."""

    text: str
    waveform_S: Tensor
    sample_rate_hz: int
    stopped: bool

    def write(self, path: str | Path) -> None:
        """As a WAV file, or what the name's ending says."""
        write_audio(path, self.waveform_S)


@dataclass(frozen=True)
class SpeechModel:
    """A model with its codec, a voice and a way of drawing. `load_speech_model` makes one."""

    checkpoint: Checkpoint
    codec: Codec
    voice: Voice = Voice()
    sampling: Sampling = Sampling()
    language: str = "en"
    reference_codes: dict[Path, Tensor] = field(default_factory=dict, repr=False)
    """Codes (F, K) of references, each encoded once."""

    def generate(self, text: str, *, seed: int | None = None) -> GeneratedSpeech:
        """Speak one text; ``seed`` None: that of ``sampling``."""
        ((_, clip),) = self.generate_all([Utterance(text, seed=seed)])
        waveform_S = decode_generated(clip, self.codec)
        return GeneratedSpeech(text, waveform_S, self.codec.sample_rate_hz, clip.stopped)

    def generate_all(
        self, script: Sequence[Utterance], *, batch_size: int = 8
    ) -> Iterator[tuple[int, GeneratedCodes]]:
        """Speak every line, and yield it with its number in ``script`` as soon as it is finished.

        Raises:
            UserError: a reference cannot be read, or a text cannot be laid out. Before anything is spoken.
        """
        requests = [self.build_request(line) for line in script]
        return generate_codes(self.checkpoint, requests, sampling=self.sampling, batch_size=batch_size)

    def build_request(self, line: Utterance) -> Request:
        """A line in this speaker's voice; a scene or references of its own come before the speaker's."""
        lender = line.voice if line.references else self.voice
        context = Context(
            scene=line.scene or self.voice.scene,
            references=self._encode_clips(lender.references),
            turns=self._encode_clips(line.turns),
            references_in_system=lender.references_in_system,
        )
        return Request(line.text, context, line.seed, line.language or self.language)

    def _encode_clips(self, clips: Sequence[Clip]) -> tuple[PromptClip, ...]:
        for clip in clips:
            if clip.audio not in self.reference_codes:
                self.reference_codes[clip.audio] = self.codec.encode(read_audio(clip.audio))
        return tuple(PromptClip(clip.text, self.reference_codes[clip.audio]) for clip in clips)


def load_speech_model(
    model: str | Path,
    *,
    codec: str | None = None,
    voice: Voice = Voice(),
    sampling: Sampling = Sampling(),
    language: str = "en",
    dtype: str = "float32",
    device: str | None = None,
) -> SpeechModel:
    """Load a model to speak with.

    Args:
        model: an adapter's folder (its base model is opened beneath it), a merged or a base model's, or a hub name.
        codec: as `load_codec`; None: the model's own.
        device: as torch's; None: a GPU where there is one.

    Raises:
        CheckpointError: model or codec cannot be loaded, or do not fit each other.
        UserError: torch knows no such device here.
    """
    checkpoint = load_trained(model, dtype=dtype)
    try:
        checkpoint.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        raise UserError(f"the model cannot be put on {device!r} ({error}); give another device") from error
    checkpoint.model.eval()
    return SpeechModel(checkpoint, load_codec_of(checkpoint, codec), voice, sampling, language)


@dataclass(frozen=True)
class GeneratedFolder:
    """What `generate_into_folder` wrote. ``at_limit``: names of the clips that the model did not end itself."""

    num_clips: int
    audio_seconds: float
    seconds: float
    at_limit: tuple[str, ...]


def generate_into_folder(
    model: SpeechModel,
    requests: Sequence[Request],
    output: str | Path,
    *,
    batch_size: int = 8,
    on_clip: Callable[[int, GeneratedCodes, Tensor], None] = lambda number, clip, waveform_S: None,
) -> GeneratedFolder:
    """Speak every request into ``NNNN.wav`` and ``index.jsonl``, with a progress bar. Each file is there, whole, as
    soon as its clip is finished; ``on_clip`` is then given its number, the clip and its waveform (S,).

    Raises:
        UserError: ``output`` holds files already, or a text cannot be laid out.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    check_is_empty(output)
    clips = generate_codes(model.checkpoint, requests, sampling=model.sampling, batch_size=batch_size)
    started, audio_seconds, at_limit = time.perf_counter(), 0.0, []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        ClipFolder(output, model.codec) as folder,
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
    ):
        task = progress.add_task("speaking", total=len(requests))
        for number, clip in clips:
            seed = requests[number].seed
            waveform_S = folder.write(number, clip, seed=model.sampling.seed if seed is None else seed)
            on_clip(number, clip, waveform_S)
            audio_seconds += len(clip.codes_FK) / model.codec.frames_per_second
            if not clip.stopped:
                at_limit.append(name_clip(number))
            progress.advance(task)
    return GeneratedFolder(
        len(requests), audio_seconds, time.perf_counter() - started, tuple(sorted(at_limit))
    )
