"""Sentences, spoken or recorded, and what judges say of each: a row a clip."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from higgs_trainer.audio.files import SAMPLE_RATE_HZ
from higgs_trainer.errors import UserError
from higgs_trainer.evaluation.judges import Transcriber, count_character_errors, count_word_errors, load_asr
from higgs_trainer.evaluation.quality import QualityPredictor, load_quality_predictor
from higgs_trainer.evaluation.sentences import Sentence, VoicePrints
from higgs_trainer.evaluation.speaker_encoder import SpeakerEncoder, load_speaker_encoder
from higgs_trainer.run_folder import name_clip
from higgs_trainer.speech.speech_model import SpeechModel, generate_into_folder


@dataclass(frozen=True)
class Clip:
    """What is judged: a waveform (S,), and whether it was ended and not cut."""

    waveform_S: Tensor
    stopped: bool
    audio: str


@dataclass(frozen=True)
class Judges:
    """Who listens. ``quality`` None: nobody predicts it. ``sample_rate_hz``: of all waveforms."""

    asr: Transcriber
    encoder: SpeakerEncoder
    quality: QualityPredictor | None
    sample_rate_hz: int


@dataclass(frozen=True)
class JudgedClip:
    """A row: one sentence by one model. None: there is nothing to compare with, or nobody judged it.

    ``length_ratio``: seconds by those of the recording. ``similarity``: cosine with the voice that it should have;
    ``similarity_to_others``: the mean over other voices.
    """

    model: str
    number: int
    text: str
    audio: str
    transcript: str
    word_errors: int
    words: int
    character_errors: int
    characters: int
    similarity: float | None
    similarity_to_others: float | None
    quality: float | None
    stopped: bool
    seconds: float
    length_ratio: float | None


def load_judges(asr: str, *, language: str = "en", with_quality: bool = True) -> Judges:
    """The judges by name; they listen at this package's rate.

    Raises:
        UserError: there is no such recogniser, or an extra is not installed.
    """
    return Judges(
        load_asr(asr, language=language),
        load_speaker_encoder(),
        load_quality_predictor() if with_quality else None,
        SAMPLE_RATE_HZ,
    )


def generate_sentences(
    speaker: SpeechModel, sentences: Sequence[Sentence], folder: Path, *, batch_size: int
) -> tuple[list[Clip], float]:
    """Each sentence, spoken into ``folder``, and how many seconds of audio were spoken in a second."""
    clips: dict[int, Clip] = {}
    done = generate_into_folder(
        speaker,
        [sentence.request for sentence in sentences],
        folder,
        batch_size=batch_size,
        on_clip=lambda number, clip, waveform_S: clips.update(
            {number: Clip(waveform_S, clip.stopped, str(folder / name_clip(number)))}
        ),
    )
    return [clips[number] for number in range(len(sentences))], done.audio_seconds / done.seconds


def take_recordings(sentences: Sequence[Sentence]) -> list[Clip]:
    """The recordings of the sentences as clips. ``UserError`` where one has none."""
    missing = [sentence.request.text for sentence in sentences if sentence.recording_S is None]
    if missing:
        raise UserError(
            f"{len(missing)} sentences have no recording, the first {missing[0]!r}; give 'audio' in the "
            "rows of --text-file, or --data"
        )
    return [
        Clip(sentence.recording_S, True, "") for sentence in sentences if sentence.recording_S is not None
    ]


def judge_clips(
    model: str,
    sentences: Sequence[Sentence],
    clips: Sequence[Clip],
    voices: VoicePrints,
    judges: Judges,
    *,
    on_done: Callable[[], None] = lambda: None,
) -> list[JudgedClip]:
    """One row a sentence."""
    rows = []
    for number, (sentence, clip) in enumerate(zip(sentences, clips, strict=True)):
        text, waveform_S, rate_hz = sentence.request.text, clip.waveform_S, judges.sample_rate_hz
        transcript = judges.asr.transcribe(waveform_S, rate_hz)
        words, characters = count_word_errors(text, transcript), count_character_errors(text, transcript)
        print_D, own_D, others = (
            judges.encoder.embed(waveform_S, rate_hz),
            voices.own[number],
            voices.others[number],
        )
        recording_S = sentence.recording_S
        rows.append(
            JudgedClip(
                model=model,
                number=number,
                text=text,
                audio=clip.audio,
                transcript=transcript,
                word_errors=words.errors,
                words=words.total,
                character_errors=characters.errors,
                characters=characters.total,
                similarity=None if own_D is None else float(print_D @ own_D),
                similarity_to_others=float(np.mean([float(print_D @ o) for o in others])) if others else None,
                quality=None if judges.quality is None else judges.quality.predict(waveform_S, rate_hz),
                stopped=clip.stopped,
                seconds=len(waveform_S) / rate_hz,
                length_ratio=None if recording_S is None else len(waveform_S) / len(recording_S),
            )
        )
        on_done()
    return rows
