"""Judge clips with the recogniser, the speaker encoder and the quality predictor: each clip becomes a row."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from higgs_trainer.audio.files import SAMPLE_RATE_HZ
from higgs_trainer.evaluation.languages import (
    DEFAULT_LANGUAGE,
    check_digits_are_english,
    read_language,
)
from higgs_trainer.evaluation.quality import QualityPredictor, load_quality_predictor
from higgs_trainer.evaluation.recogniser import Recogniser, load_recogniser
from higgs_trainer.evaluation.recogniser_source import Wording, check_hears
from higgs_trainer.evaluation.sentences import EvaluationSentence
from higgs_trainer.evaluation.speaker_encoder import SpeakerEncoder, load_speaker_encoder
from higgs_trainer.evaluation.voices import VoiceEmbeddings
from higgs_trainer.evaluation.word_errors import count_errors
from higgs_trainer.progress import ProgressBar


@dataclass(frozen=True)
class ClipToJudge:
    """A waveform (S,), whether it ended before the limit, and its file (None: the clip is in no file)."""

    waveform_S: Tensor
    stopped: bool = True
    audio: str | None = None


@dataclass(frozen=True)
class Judges:
    """The judges of an evaluation.

    Attributes:
        recogniser: hears words. None: words are not judged.
        quality: the quality predictor. None: no quality is predicted.
        sample_rate_hz: the sample rate of all waveforms.
        digits_spelled: compare numbers digit by digit, and also count errors with homophones of digits forgiven.
    """

    recogniser: Recogniser | None
    encoder: SpeakerEncoder
    quality: QualityPredictor | None
    sample_rate_hz: int
    digits_spelled: bool = False


@dataclass(frozen=True)
class JudgedClip:
    """The judgement of one clip, generated or recorded. A field is None without a judge or a recording for it.

    Attributes:
        model: the name of the model, or of the set of clips.
        audio: the clip's file, in `rows.jsonl` relative to the folder of that file.
        transcript: what the recogniser heard. None: words are not judged.
        word_errors: None, like ``words``, also if the language is written without spaces.
        similarity: cosine of the clip with the voice that it should have.
        similarity_to_others: mean cosine with other voices.
        length_ratio: seconds of the clip divided by seconds of the recording.
        word_errors_homophones_forgiven: word errors with "to" for "two" and the like forgiven.
        language: the code of the language in which the clip was heard.
    """

    model: str
    number: int
    text: str
    audio: str | None
    transcript: str | None
    word_errors: int | None
    words: int | None
    character_errors: int | None
    characters: int | None
    similarity: float | None
    similarity_to_others: float | None
    quality: float | None
    stopped: bool
    seconds: float
    length_ratio: float | None
    word_errors_homophones_forgiven: int | None = None
    language: str = DEFAULT_LANGUAGE


def load_judges(
    recogniser: str | None = None,
    *,
    language: str | Mapping[str, int] = DEFAULT_LANGUAGE,
    recogniser_languages: Collection[str] = (),
    with_words: bool = True,
    with_quality: bool = True,
    digits_spelled: bool = False,
) -> Judges:
    """Load the judges, for waveforms at this package's sample rate.

    Args:
        recogniser: "whisper-tiny.en" (English only), "whisper-base" (multilingual), a folder or a name on the hub.
            None: "whisper-tiny.en" for English, else "whisper-base".
        language: the language of the texts, or how many texts are in each language.
        recogniser_languages: the languages that a recogniser knows whose files do not say so.
        with_words: False: no recogniser is loaded, and words are not judged.

    Raises:
        UserError: there is no such recogniser, it does not know the language, or an extra is not installed.

    Example:
        ```python
        from higgs_trainer import load_judges

        judges = load_judges("whisper-tiny.en", language="en", with_quality=False)
        ```
    """
    counts = language if isinstance(language, Mapping) else {language: 1}
    codes = {read_language(name): number for name, number in counts.items()}
    if digits_spelled:
        check_digits_are_english(codes)
    return Judges(
        load_recogniser(recogniser, codes, stated=recogniser_languages) if with_words else None,
        load_speaker_encoder(),
        load_quality_predictor() if with_quality else None,
        SAMPLE_RATE_HZ,
        digits_spelled,
    )


def check_judges(judges: Judges, languages: Mapping[str, int]) -> None:
    """Check that the judges can judge texts in these languages.

    Args:
        languages: the number of texts in each language.

    Raises:
        UserError: the recogniser does not know one of them, or digits are to be spelled in another than English.
    """
    if judges.digits_spelled:
        check_digits_are_english(languages)
    if judges.recogniser is not None:
        check_hears(judges.recogniser.source, languages, Wording())


def judge_clips(
    model: str,
    sentences: Sequence[EvaluationSentence],
    clips: Sequence[ClipToJudge],
    voices: VoiceEmbeddings,
    judges: Judges,
    *,
    on_done: Callable[[], None] = lambda: None,
) -> list[JudgedClip]:
    """Judge one clip for each sentence.

    Raises:
        ValueError: the lists have different lengths, or a text has no word.
    """
    rows = []
    for number, (sentence, clip) in enumerate(zip(sentences, clips, strict=True)):
        rows.append(
            _judge_clip(model, number, sentence, clip, voices.own[number], voices.others[number], judges)
        )
        on_done()
    return rows


def judge_clips_with_progress(
    model: str,
    sentences: Sequence[EvaluationSentence],
    clips: Sequence[ClipToJudge],
    voices: VoiceEmbeddings,
    judges: Judges,
) -> list[JudgedClip]:
    """Judge clips (`judge_clips`), with a progress bar on stderr."""
    with ProgressBar("judging", len(clips)) as bar:
        return judge_clips(model, sentences, clips, voices, judges, on_done=bar.advance)


def _judge_clip(
    model: str,
    number: int,
    sentence: EvaluationSentence,
    clip: ClipToJudge,
    own_D: Tensor | None,
    others: Sequence[Tensor],
    judges: Judges,
) -> JudgedClip:
    waveform_S, rate_hz, recording_S = clip.waveform_S, judges.sample_rate_hz, sentence.recording_S
    language = read_language(sentence.request.language)
    transcript, errors = None, None
    if judges.recogniser is not None:
        transcript = judges.recogniser.transcribe(waveform_S, rate_hz, language=language)
        errors = count_errors(
            sentence.request.text,
            transcript,
            language=sentence.request.language,
            digits_spelled=judges.digits_spelled,
        )
    words, characters, forgiven = (
        (None, None, None) if errors is None else (errors.words, errors.characters, errors.words_forgiven)
    )
    embedding_D = judges.encoder.embed(waveform_S, rate_hz)
    return JudgedClip(
        model=model,
        number=number,
        text=sentence.request.text,
        audio=clip.audio,
        transcript=transcript,
        word_errors=None if words is None else words.errors,
        words=None if words is None else words.total,
        character_errors=None if characters is None else characters.errors,
        characters=None if characters is None else characters.total,
        similarity=None if own_D is None else float(embedding_D @ own_D),
        similarity_to_others=float(np.mean([float(embedding_D @ o) for o in others])) if others else None,
        quality=None if judges.quality is None else judges.quality.predict(waveform_S, rate_hz),
        stopped=clip.stopped,
        seconds=len(waveform_S) / rate_hz,
        length_ratio=None if recording_S is None else len(waveform_S) / len(recording_S),
        word_errors_homophones_forgiven=None if forgiven is None else forgiven.errors,
        language=language,
    )
