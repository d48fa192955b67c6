"""Generate speech with a trained model: load it with `load_speech_model`, then call `SpeechModel.generate`."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path

import torch
from torch import Tensor

from higgs_trainer.audio.codec import Codec
from higgs_trainer.audio.files import read_audio, write_audio
from higgs_trainer.dataset.context import Context, PromptClip
from higgs_trainer.errors import UserError
from higgs_trainer.limits import LONGEST_SPEECH_SECONDS
from higgs_trainer.manifest.utterance import Clip, Utterance, Voice
from higgs_trainer.model.loaded_dtype import AUTO
from higgs_trainer.model.loading import Checkpoint, load_codec_of, load_trained
from higgs_trainer.outputs import fill_folder
from higgs_trainer.page.sound import encode_audio
from higgs_trainer.progress import ProgressBar
from higgs_trainer.run_folder import name_clip
from higgs_trainer.speech.clip_folder import ClipFolder, GeneratedCodes, decode_generated
from higgs_trainer.speech.generate import Request, generate_codes
from higgs_trainer.speech.sampling import Sampling


@dataclass(frozen=True)
class GeneratedSpeech:
    """Speech that a model generated: a waveform (S,) at ``sample_rate_hz``. A notebook shows a player for it.

    Attributes:
        stopped: whether the model ended the clip. Otherwise it was cut at the limit of ``Sampling.max_seconds``.
    """

    text: str
    waveform_S: Tensor
    sample_rate_hz: int
    stopped: bool

    def write(self, path: str | Path) -> None:
        """Write the waveform as a WAV file, or in the format of the path's suffix."""
        write_audio(path, self.waveform_S)

    @property
    def seconds(self) -> float:
        """The duration."""
        return len(self.waveform_S) / self.sample_rate_hz

    def _repr_html_(self) -> str:
        """Return the text and a player, which notebooks show in place of the object."""
        end = "" if self.stopped else ", cut at the limit"
        return (
            f"<div><p>{escape(self.text)} <small>({self.seconds:.1f} s{end})</small></p>"
            f'<audio controls src="{encode_audio(self.waveform_S, self.sample_rate_hz)}"></audio></div>'
        )


@dataclass(frozen=True)
class SpeechModel:
    """A model with its codec, a voice and sampling settings. Load one with `load_speech_model`.

    Attributes:
        voice: the scene and references for texts that name none.
        language: the language of texts that name none.
        reference_codes: the codes (F, K) of references that were encoded already, by path.
    """

    checkpoint: Checkpoint
    codec: Codec
    voice: Voice = Voice()
    sampling: Sampling = Sampling()
    language: str = "en"
    reference_codes: dict[Path, Tensor] = field(default_factory=dict, repr=False)

    def generate(
        self, text: str, *, seed: int | None = None, max_seconds: float | None = None
    ) -> GeneratedSpeech:
        """Generate speech for one text.

        Args:
            seed: the seed of the sampling. None: that of ``self.sampling``.
            max_seconds: the maximum duration, of each part if the text is long. None: that of ``self.sampling``.

        Raises:
            UserError: a reference cannot be read, the text cannot be part of a prompt, or ``max_seconds`` is too small
                or too large.
        """
        speaker = self if max_seconds is None else self._limit(max_seconds)
        ((_, speech),) = speaker.generate_all([Utterance(text, seed=seed)])
        return speech

    def _limit(self, max_seconds: float) -> "SpeechModel":
        """Return this model with another maximum duration."""
        if not 0.1 <= max_seconds <= LONGEST_SPEECH_SECONDS:
            raise UserError(
                f"max_seconds is {max_seconds}. Give a duration from 0.1 to {LONGEST_SPEECH_SECONDS:g} seconds."
            )
        part_seconds = self.sampling.part_seconds
        if part_seconds is not None and part_seconds > max_seconds:
            part_seconds = None
        sampling = replace(self.sampling, max_seconds=max_seconds, part_seconds=part_seconds)
        return replace(self, sampling=sampling)

    def generate_all(
        self, utterances: Sequence[Utterance], *, batch_size: int = 8
    ) -> Iterator[tuple[int, GeneratedSpeech]]:
        """Generate speech for each utterance, and yield it with its index as soon as it is finished.

        Raises:
            UserError: a reference cannot be read, or a text cannot be part of a prompt.
        """
        requests = [self.build_request(utterance) for utterance in utterances]
        clips = generate_codes(self.checkpoint, requests, sampling=self.sampling, batch_size=batch_size)
        for number, clip in clips:
            waveform_S = decode_generated(clip, self.codec)
            yield number, GeneratedSpeech(clip.text, waveform_S, self.codec.sample_rate_hz, clip.stopped)

    def build_request(self, utterance: Utterance) -> Request:
        """Build the request for an utterance. Its own scene, references and language replace those of the model."""
        voice = utterance.voice if utterance.references else self.voice
        context = Context(
            scene=utterance.scene or self.voice.scene,
            references=self._encode_clips(voice.references),
            turns=self._encode_clips(utterance.turns),
            references_in_system=voice.references_in_system,
        )
        return Request(utterance.text, context, utterance.seed, utterance.language or self.language)

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
    dtype: str = AUTO,
    device: str | None = None,
) -> SpeechModel:
    """Load a model, its tokenizer and its codec.

    Args:
        model: the folder of an adapter (its base model is loaded too), of a merged model or of a base model, or the
            name of a model on the hub.
        codec: a codec as in `load_codec`. None: the codec in the folder of the model.
        dtype: of the weights, "float32", "bfloat16" or "float16". "auto": bfloat16 if the model is stored in it, else
            float32.
        device: a device of torch, such as "cuda:1". None: a GPU if there is one.

    Raises:
        CheckpointError: the model or the codec cannot be loaded, or the two do not fit together.
        UserError: the device does not exist.

    Example:
        ```python
        from higgs_trainer import load_speech_model

        model = load_speech_model("runs/voice")
        speech = model.generate("Eight three one five.")
        speech.write("speech.wav")
        ```
    """
    checkpoint = load_trained(model, dtype=dtype)
    try:
        checkpoint.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if checkpoint.model.device.type == "meta":
            raise RuntimeError("it has no memory for weights")
    # A build of torch without CUDA raises AssertionError.
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"the model cannot be moved to device {device!r} ({error}). Give another device."
        ) from error
    checkpoint.model.eval()
    return SpeechModel(checkpoint, load_codec_of(checkpoint, codec), voice, sampling, language)


@dataclass(frozen=True)
class GeneratedFolder:
    """What `generate_into_folder` wrote.

    Attributes:
        audio_seconds: the duration of all clips together.
        seconds: how long it took.
        at_limit: the names of the clips that the model did not end.
    """

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
    """Generate a clip for each request into ``NNNN.wav`` and ``index.jsonl``, with a progress bar.

    What an earlier call left unfinished in ``output`` is renamed to ``NAME.unfinished-N``.

    Args:
        on_clip: called after each clip is written, with its index in ``requests``, the clip and its waveform (S,).

    Raises:
        UserError: ``output`` is not empty, or a text cannot be part of a prompt.
    """
    clips = generate_codes(model.checkpoint, requests, sampling=model.sampling, batch_size=batch_size)
    started, audio_seconds, at_limit = time.perf_counter(), 0.0, []
    with (
        fill_folder(output),
        ClipFolder(output, model.codec) as folder,
        ProgressBar("generating", len(requests)) as bar,
    ):
        for number, clip in clips:
            seed = requests[number].seed
            waveform_S = folder.write(number, clip, seed=model.sampling.seed if seed is None else seed)
            on_clip(number, clip, waveform_S)
            audio_seconds += len(clip.codes_FK) / model.codec.frames_per_second
            if not clip.stopped:
                at_limit.append(name_clip(number))
            bar.advance()
    return GeneratedFolder(
        len(requests), audio_seconds, time.perf_counter() - started, tuple(sorted(at_limit))
    )
