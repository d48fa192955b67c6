"""Predict the overall quality of speech, 1 to 5, with DNSMOS P.835 (Reddy et al. 2022, arXiv:2110.01763).

The network is in the wheel of speechmos (MIT). onnxruntime runs it here, because speechmos' own code requires librosa
and pandas and does not resample. DNSMOS was made for noisy calls: it separates noise, clipping and metallic voices from
clean speech, but hardly one clean voice from another (docs/decisions/judge.md).
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from torch import Tensor

from higgs_trainer.audio.files import SAMPLE_RATE_HZ
from higgs_trainer.errors import UserError

QUALITY_SAMPLE_RATE_HZ = 16_000
WINDOW_SECONDS = 9.01
REMEDY = "Run: pip install 'higgs-trainer[evaluate]', or pass --no-quality."
OVERALL = np.poly1d([-0.06766283, 1.11546468, 0.04602535])
"""Maps the network's third output to the scale of listeners, as in Microsoft's script."""


class QualityPredictor:
    """The DNSMOS network in an onnxruntime session."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def predict(self, waveform_S: Tensor, sample_rate_hz: int = SAMPLE_RATE_HZ) -> float:
        """Return the overall quality, 1 to 5, of a waveform (S,). An empty clip gets 1.

        It is the mean over windows of 9 seconds, one per second. As in Microsoft's script, a shorter clip is repeated
        until it fills a window.
        """
        samples = waveform_S.detach().to("cpu", torch.float32).clamp(-1.0, 1.0).numpy()
        samples = soxr.resample(samples, sample_rate_hz, QUALITY_SAMPLE_RATE_HZ, quality="HQ")
        if not len(samples):
            return 1.0
        window = int(WINDOW_SECONDS * QUALITY_SAMPLE_RATE_HZ)
        while len(samples) < window:
            samples = np.concatenate([samples, samples])
        num_windows = int(len(samples) // QUALITY_SAMPLE_RATE_HZ - WINDOW_SECONDS) + 1
        starts = [number * QUALITY_SAMPLE_RATE_HZ for number in range(num_windows)]
        windows = [samples[start : start + window][None] for start in starts]
        scores_W3 = np.concatenate(
            [self.session.run(None, {"input_1": window_1S})[0] for window_1S in windows]
        )
        return float(OVERALL(scores_W3[:, 2]).mean())


def load_quality_predictor() -> QualityPredictor:
    """Load the network from the installed package. Nothing is downloaded.

    Raises:
        UserError: the extra is not installed.
    """
    found = importlib.util.find_spec("speechmos")
    if found is None or not found.submodule_search_locations:
        raise UserError(f"predicted quality needs speechmos, which is not installed. {REMEDY}")
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"predicted quality needs {error.name}, which is not installed. {REMEDY}") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    weights = Path(found.submodule_search_locations[0]) / "dnsmos_models" / "sig_bak_ovr.onnx"
    session = onnxruntime.InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])
    return QualityPredictor(session)
