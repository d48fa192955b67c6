"""Compute an embedding of the speaker of a waveform, with Resemblyzer's network in plain torch.

The network, its front end and its weights are those of Resemblyzer 0.1.4 (Apache-2.0; Wan et al. 2018,
arXiv:1710.10467). The weights are in `speaker_encoder_weights`, as float16. Resemblyzer's own package cannot be
installed without a compiler (docs/decisions/judge.md). Its voice activity detection is left out. That moves an
embedding by 0.002 to 0.007 in cosine on clips without long pauses.

Axes: S samples, T steps of 10 ms, M mel bands, W windows, D dimensions of an embedding.
"""

import math
from pathlib import Path

import numpy as np
import soxr
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

WEIGHTS = Path(__file__).parent / "speaker_encoder_weights" / "model.safetensors"
ENCODER_SAMPLE_RATE_HZ = 16_000
HOP_SAMPLES, FFT_SAMPLES, MEL_BANDS = 160, 400, 40
HIDDEN_SIZE, NUM_LAYERS, EMBEDDING_SIZE = 256, 3, 256
# 1.6 seconds, and 1.3 windows per second.
WINDOW_STEPS, WINDOW_STRIDE_STEPS = 160, 77
# A last window with a smaller share of speech than this is dropped.
SHORTEST_LAST_WINDOW = 0.75
# Quieter clips are amplified to -30 dBFS.
QUIETEST_RMS = 10 ** (-30 / 20)


class SpeakerEncoder(nn.Module):
    """Three LSTM layers and a projection.

    Embeddings of the same voice have a cosine of 0.85 to 0.92, those of different voices about 0.55.
    """

    mel_filters_MF: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(MEL_BANDS, HIDDEN_SIZE, NUM_LAYERS, batch_first=True)
        self.linear = nn.Linear(HIDDEN_SIZE, EMBEDDING_SIZE)
        filters_FM = mel_filter_bank(
            FFT_SAMPLES // 2 + 1,
            MEL_BANDS,
            0.0,
            8000.0,
            ENCODER_SAMPLE_RATE_HZ,
            norm="slaney",
            mel_scale="slaney",
        )
        self.register_buffer("mel_filters_MF", torch.from_numpy(filters_FM.T).float(), persistent=False)

    def forward(self, mel_WTM: Tensor) -> Tensor:
        """Map mel windows (W, T, M) to embeddings (W, D) of length one without negative components."""
        _, (hidden, _) = self.lstm(mel_WTM)
        return nn.functional.normalize(torch.relu(self.linear(hidden[-1])), dim=1)

    @torch.no_grad()
    def embed(self, waveform_S: Tensor, sample_rate_hz: int) -> Tensor:
        """Return the embedding (D,) of a clip's speaker, of length one. An empty or silent clip gives zeros."""
        samples = waveform_S.detach().to("cpu", torch.float32).numpy()
        samples = soxr.resample(samples, sample_rate_hz, ENCODER_SAMPLE_RATE_HZ, quality="HQ")
        rms = math.sqrt(float(np.mean(samples**2))) if len(samples) else 0.0
        if rms < 1e-5:
            return torch.zeros(EMBEDDING_SIZE)
        speech_S = torch.from_numpy(samples) * max(1.0, QUIETEST_RMS / rms)
        windows_WD = self(self._cut_windows(speech_S))
        return nn.functional.normalize(windows_WD.mean(dim=0), dim=0)

    def _cut_windows(self, speech_S: Tensor) -> Tensor:
        """Compute the power mel spectra of overlapping windows (W, T, M), without logarithm."""
        num_steps = math.ceil((len(speech_S) + 1) / HOP_SAMPLES)
        num_starts = max(1, num_steps - WINDOW_STEPS + WINDOW_STRIDE_STEPS + 1)
        starts = list(range(0, num_starts, WINDOW_STRIDE_STEPS))
        last_share = (len(speech_S) / HOP_SAMPLES - starts[-1]) / WINDOW_STEPS
        if len(starts) > 1 and last_share < SHORTEST_LAST_WINDOW:
            starts.pop()
        padding = max(0, (starts[-1] + WINDOW_STEPS) * HOP_SAMPLES - len(speech_S))
        spectrum_FT = torch.stft(
            nn.functional.pad(speech_S, (0, padding)),
            FFT_SAMPLES,
            HOP_SAMPLES,
            window=torch.hann_window(FFT_SAMPLES),
            pad_mode="constant",
            return_complex=True,
        )
        mel_TM = (self.mel_filters_MF @ spectrum_FT.abs().square()).T
        return torch.stack([mel_TM[start : start + WINDOW_STEPS] for start in starts])


def load_speaker_encoder() -> SpeakerEncoder:
    """Load the encoder with its shipped weights. This takes a few milliseconds."""
    encoder = SpeakerEncoder()
    encoder.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()})
    return encoder.eval()


def convert_resemblyzer_weights(checkpoint: str | Path, target: str | Path = WEIGHTS) -> None:
    """Write `WEIGHTS` from Resemblyzer's `pretrained.pt`: only the network, in float16, without optimizer state."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["model_state"]
    names = SpeakerEncoder().state_dict().keys()
    save_file({name: state[name].to(torch.float16).contiguous() for name in names}, target)
