"""The quality predictor gives the figures of its authors' code."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from higgs_trainer.audio.files import read_audio
from higgs_trainer.errors import UserError
from higgs_trainer.evaluation.quality import load_quality_predictor

RECORDINGS = Path(__file__).parents[2] / "recordings"
HAS_QUALITY = all(importlib.util.find_spec(name) for name in ("speechmos", "onnxruntime"))


@pytest.mark.skipif(not HAS_QUALITY, reason="the extra 'evaluate' is not installed")
def test_the_figure_is_that_of_speechmos() -> None:
    waveform_S = read_audio(RECORDINGS / "rms-five-six-eight-one.ogg")
    # Made by speechmos 0.0.1.1: dnsmos.run(waveform, 16000)["ovrl_mos"], resampled by soxr as here.
    assert load_quality_predictor().predict(waveform_S) == pytest.approx(2.9847, abs=0.002)
    assert load_quality_predictor().predict(torch.zeros(0)) == 1.0


def test_a_missing_extra_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"speechmos.*pip install 'higgs-trainer\[evaluate\]'.*--no-quality"):
        load_quality_predictor()
    monkeypatch.undo()
    if HAS_QUALITY:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(UserError, match="onnxruntime"):
            load_quality_predictor()
