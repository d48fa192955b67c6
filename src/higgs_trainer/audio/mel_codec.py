"""The mel codec: small, for CPUs, without a download. Its codes have the shape of those of Higgs Audio's tokenizer.

It works at 24 kHz, with 25 frames a second and 8 codebooks. A frame of 40 ms is four steps of 10 ms, each a log-mel
spectrum of 80 bands:

    waveform_S -> log-mel_FM (M = 4 * 80) -> principal components_FD -> residual vector quantization -> codes_FK

Decoding goes the same way back. Fast Griffin-Lim estimates the phase, which a mel spectrum does not contain. Speech
sounds robotic and stays intelligible. A codec represents the voices that it was fitted on best; `MelCodec.fit` fits one
to any recordings in minutes. The package ships one fit, "embedded"; the demo has another.

Axes: S samples, F frames, M log-mel values of a frame, D components, K codebooks, C codes in a codebook, N beams.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from higgs_trainer.errors import CheckpointError
from higgs_trainer.files import write_json
from higgs_trainer.input_files import check_ends
from higgs_trainer.tensors import FRAMES_PER_SECOND

CONFIG_FILE, WEIGHTS_FILE = "codec_config.json", "codec.safetensors"

# The version of the computation below and of the saved folder. It is part of the fingerprint.
FORMAT = 1
SAMPLE_RATE_HZ = 24_000
NUM_CODEBOOKS = 8

STEPS_PER_FRAME = 4
FRAME_SAMPLES = SAMPLE_RATE_HZ // FRAMES_PER_SECOND
STEP_SAMPLES = FRAME_SAMPLES // STEPS_PER_FRAME
WINDOW_SAMPLES = 1024
NUM_MELS = 80
NUM_COMPONENTS = 64
# A smaller magnitude counts as silence.
MEL_FLOOR = 1e-3

BEAMS = 16
# Limits the memory of the beam search.
FRAMES_PER_CHUNK = 512

GRIFFIN_LIM_ITERATIONS = 60
GRIFFIN_LIM_MOMENTUM = 0.99
NNLS_ITERATIONS = 50

MAX_FIT_FRAMES = 150_000
KMEANS_ITERATIONS = 15
REFINE_ROUNDS = 3
REFINE_BEAMS = 4
REFINE_SWEEPS = 3


@dataclass(frozen=True, eq=False)
class MelCodec:
    """A fitted codec. Its tensors are float32 in memory and float16 on disk, with the same values."""

    name: str
    mean_M: torch.Tensor
    components_DM: torch.Tensor
    codebooks_KCD: torch.Tensor

    sample_rate_hz = SAMPLE_RATE_HZ
    frames_per_second = FRAMES_PER_SECOND
    num_codebooks = NUM_CODEBOOKS
    revision = None

    @property
    def codebook_size(self) -> int:
        """The number of codes in a codebook, without the two stream tokens (begin and end)."""
        return self.codebooks_KCD.shape[1]

    @property
    def fingerprint(self) -> str:
        """A hash of everything that the codes depend on: equal fingerprints mean equal codes."""
        digest = hashlib.sha256(f"mel_codec format {FORMAT}".encode())
        for tensor in self._tensors().values():
            digest.update(str(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
        return digest.hexdigest()[:16]

    @classmethod
    def fit(
        cls, waveforms: Sequence[torch.Tensor], *, codebook_size: int, seed: int, name: str = "mel_codec"
    ) -> MelCodec:
        """Fit a codec to speech: mono, 24 kHz, (S,) each. At most `MAX_FIT_FRAMES` frames are used.

        Raises:
            ValueError: the recordings have fewer frames than a codebook has codes.
        """
        generator = torch.Generator().manual_seed(seed)
        frames_FM = torch.cat([compute_log_mel(waveform_S) for waveform_S in waveforms])
        if len(frames_FM) < codebook_size:
            raise ValueError(
                f"{len(frames_FM)} frames ({len(frames_FM) / FRAMES_PER_SECOND:.1f} s) are too few for codebooks of "
                f"{codebook_size} codes. Give more recordings, or a smaller codebook_size."
            )
        frames_FM = frames_FM[torch.randperm(len(frames_FM), generator=generator)[:MAX_FIT_FRAMES]]
        mean_M = frames_FM.mean(dim=0).half().float()
        components_DM = _principal_components(frames_FM - mean_M).half().float()
        points_FD = (frames_FM - mean_M) @ components_DM.T
        codebooks_KCD = _fit_codebooks(points_FD, codebook_size, generator).half().float()
        return cls(name, mean_M, components_DM, codebooks_KCD)

    @torch.inference_mode()
    def encode(self, waveform_S: torch.Tensor) -> torch.Tensor:
        """Encode a waveform (S,), float, 24 kHz, to codes (F, K), int64 in [0, C).

        F = ceil(S / 960): silence fills the last frame.

        Raises:
            ValueError: the waveform is not one-dimensional, is empty or is not finite.
        """
        points_FD = (compute_log_mel(waveform_S) - self.mean_M) @ self.components_DM.T
        return search_codes(points_FD, self.codebooks_KCD, BEAMS)

    def encode_batch(self, waveforms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Encode the clips one by one: one clip occupies a core, and a larger matrix product may round differently."""
        return [self.encode(waveform_S) for waveform_S in waveforms]

    @torch.inference_mode()
    def decode(self, codes_FK: torch.Tensor) -> torch.Tensor:
        """Decode codes (F, K) to a float32 waveform (F * 960,) in [-1, 1], 24 kHz, deterministically.

        Raises:
            ValueError: another shape, or a code outside [0, C): begin and end of stream are not audio.
        """
        self._check_codes(codes_FK)
        points_FD = sum_codewords(codes_FK, self.codebooks_KCD)
        log_mel_FM = points_FD @ self.components_DM + self.mean_M
        waveform_S = _griffin_lim(_mel_to_magnitudes(log_mel_FM))
        return waveform_S / waveform_S.abs().max().clamp(min=1.0)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the configuration and the weights into a folder, which is made if it is missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self._tensors(), folder / WEIGHTS_FILE)
        config = {
            "codec": "mel_codec",
            "format": FORMAT,
            "name": self.name,
            "sample_rate_hz": self.sample_rate_hz,
            "frames_per_second": self.frames_per_second,
            "num_codebooks": self.num_codebooks,
            "codebook_size": self.codebook_size,
            "fingerprint": self.fingerprint,
        }
        write_json(folder / CONFIG_FILE, config)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> MelCodec:
        """Read what `save_pretrained` wrote. Raise ValueError if the files do not belong together."""
        folder = Path(folder)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            check_ends(folder / name, "Copy the folder again.", CheckpointError)
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if not isinstance(config, dict) or (config.get("codec"), config.get("format")) != (
            "mel_codec",
            FORMAT,
        ):
            raise ValueError(f"{folder} is not a mel_codec of format {FORMAT}")
        tensors = {key: tensor.float() for key, tensor in load_file(folder / WEIGHTS_FILE).items()}
        codec = cls(name=config["name"], **tensors)
        if codec.fingerprint != config["fingerprint"]:
            raise ValueError(f"{folder}: {WEIGHTS_FILE} is not the file that {CONFIG_FILE} describes")
        return codec

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {
            "mean_M": self.mean_M,
            "components_DM": self.components_DM,
            "codebooks_KCD": self.codebooks_KCD,
        }
        return {key: tensor.half().contiguous() for key, tensor in tensors.items()}

    def _check_codes(self, codes_FK: torch.Tensor) -> None:
        if codes_FK.ndim != 2 or codes_FK.shape[1] != self.num_codebooks or len(codes_FK) == 0:
            raise ValueError(
                f"codes have shape {tuple(codes_FK.shape)}, expected (frames, {self.num_codebooks})"
            )
        low, high = int(codes_FK.min()), int(codes_FK.max())
        if low < 0 or high >= self.codebook_size:
            raise ValueError(
                f"codes lie in [{low}, {high}], expected [0, {self.codebook_size}). "
                "Remove begin-of-stream and end-of-stream first."
            )


# Waveform <-> log-mel


def compute_log_mel(waveform_S: torch.Tensor) -> torch.Tensor:
    """Compute the natural logarithm of mel magnitudes, (F, M), with the four steps of a frame side by side."""
    if waveform_S.ndim != 1 or len(waveform_S) == 0:
        raise ValueError(
            f"waveform has shape {tuple(waveform_S.shape)}, expected (samples,) with one sample or more"
        )
    if not torch.isfinite(waveform_S).all():
        raise ValueError("waveform contains NaN or infinite samples")
    num_frames = math.ceil(len(waveform_S) / FRAME_SAMPLES)
    padding = num_frames * FRAME_SAMPLES - len(waveform_S)
    waveform_S = torch.nn.functional.pad(waveform_S.float(), (0, padding))
    magnitudes = _stft(waveform_S).abs()[:, : num_frames * STEPS_PER_FRAME]
    mel = _mel_filters() @ magnitudes
    return mel.clamp(min=MEL_FLOOR).log().T.reshape(num_frames, STEPS_PER_FRAME * NUM_MELS)


def _mel_to_magnitudes(log_mel_FM: torch.Tensor) -> torch.Tensor:
    """Find the magnitudes (bins, 4 F + 1) whose mel spectrum is closest to a log-mel spectrum (F, M).

    Multiplicative updates (Lee and Seung 2001) from a smooth spectrum keep the magnitudes positive. The last step ends
    the last frame.
    """
    mel = log_mel_FM.reshape(-1, NUM_MELS).T.exp()
    mel = torch.cat([mel, mel[:, -1:]], dim=1)
    filters = _mel_filters()
    magnitudes = filters.T @ mel / filters.sum(dim=0)[:, None].clamp(min=1e-6)
    target = filters.T @ mel
    for _ in range(NNLS_ITERATIONS):
        magnitudes = magnitudes * target / (filters.T @ (filters @ magnitudes)).clamp(min=1e-9)
    return magnitudes


def _griffin_lim(magnitudes: torch.Tensor) -> torch.Tensor:
    """Compute a waveform (S,) from magnitudes (bins, steps) by fast Griffin-Lim (Perraudin et al. 2013), seeded."""
    generator = torch.Generator().manual_seed(0)
    phase = torch.rand(magnitudes.shape, generator=generator) * 2 * math.pi
    spectrum = torch.polar(magnitudes, phase)
    previous = torch.zeros_like(spectrum)
    for _ in range(GRIFFIN_LIM_ITERATIONS):
        consistent = _stft(_istft(spectrum))
        accelerated = consistent + GRIFFIN_LIM_MOMENTUM * (consistent - previous)
        previous = consistent
        spectrum = torch.polar(magnitudes, accelerated.angle())
    return _istft(spectrum)


def _stft(waveform_S: torch.Tensor) -> torch.Tensor:
    window = torch.hann_window(WINDOW_SAMPLES)
    return torch.stft(
        waveform_S, WINDOW_SAMPLES, STEP_SAMPLES, window=window, pad_mode="constant", return_complex=True
    )


def _istft(spectrum: torch.Tensor) -> torch.Tensor:
    return torch.istft(spectrum, WINDOW_SAMPLES, STEP_SAMPLES, window=torch.hann_window(WINDOW_SAMPLES))


def _mel_filters() -> torch.Tensor:
    """Build triangles of height 1, (NUM_MELS, bins), equally spaced in mel (2595 log10(1 + hz / 700)), 0 to 12 kHz."""
    top = 2595 * math.log10(1 + SAMPLE_RATE_HZ / 2 / 700)
    edges_hz = 700 * (10 ** (torch.linspace(0, top, NUM_MELS + 2) / 2595) - 1)
    bins_hz = torch.linspace(0, SAMPLE_RATE_HZ / 2, WINDOW_SAMPLES // 2 + 1)
    low, centre, high = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    rising = (bins_hz - low) / (centre - low)
    falling = (high - bins_hz) / (high - centre)
    return torch.minimum(rising, falling).clamp(min=0)


# Points <-> codes


def search_codes(points_FD: torch.Tensor, codebooks_KCD: torch.Tensor, num_beams: int) -> torch.Tensor:
    """Find codes (F, K) whose codewords sum to nearly the points (F, D), by a beam search over the codebooks."""
    chunks = [_search_chunk(chunk, codebooks_KCD, num_beams) for chunk in points_FD.split(FRAMES_PER_CHUNK)]
    return torch.cat(chunks)


def _search_chunk(points_FD: torch.Tensor, codebooks_KCD: torch.Tensor, num_beams: int) -> torch.Tensor:
    rows = torch.arange(len(points_FD))[:, None]
    residual_FND = points_FD[:, None]
    codes_FNK = torch.zeros(len(points_FD), 1, 0, dtype=torch.int64)
    for codebook_CD in codebooks_KCD:
        size = len(codebook_CD)
        error_FNC = (residual_FND**2).sum(-1, keepdim=True) + (codebook_CD**2).sum(-1)
        error_FNC = error_FNC - 2 * residual_FND @ codebook_CD.T
        error_FX = error_FNC.flatten(1)
        best_FN = error_FX.topk(min(num_beams, error_FX.shape[1]), largest=False).indices
        beam_FN, code_FN = best_FN // size, best_FN % size
        residual_FND = residual_FND[rows, beam_FN] - codebook_CD[code_FN]
        codes_FNK = torch.cat([codes_FNK[rows, beam_FN], code_FN[..., None]], dim=-1)
    return codes_FNK[:, 0]


def sum_codewords(codes_FK: torch.Tensor, codebooks_KCD: torch.Tensor) -> torch.Tensor:
    """Sum the codewords of codes (F, K) to points (F, D)."""
    return sum(codebook_CD[codes_F] for codebook_CD, codes_F in zip(codebooks_KCD, codes_FK.T, strict=True))


# Fitting


def _principal_components(centred_FM: torch.Tensor) -> torch.Tensor:
    """Compute the `NUM_COMPONENTS` directions of largest variance, orthonormal, (D, M)."""
    covariance = centred_FM.double().T @ centred_FM.double() / len(centred_FM)
    return torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :NUM_COMPONENTS].T.float().contiguous()


def _fit_codebooks(points_FD: torch.Tensor, codebook_size: int, generator: torch.Generator) -> torch.Tensor:
    """Fit each codebook by k-means to the residual of the earlier ones, then refine all of them together.

    The refinement alternates: search the codes of all points, then set each codeword to the mean residual of its points
    without that codeword.
    """
    residual_FD = points_FD.clone()
    codebooks = []
    for _ in range(NUM_CODEBOOKS):
        codebook_CD, nearest_F = _k_means(residual_FD, codebook_size, generator)
        residual_FD -= codebook_CD[nearest_F]
        codebooks.append(codebook_CD)
    codebooks_KCD = torch.stack(codebooks)
    for _ in range(REFINE_ROUNDS):
        codes_FK = search_codes(points_FD, codebooks_KCD, REFINE_BEAMS)
        residual_FD = points_FD - sum_codewords(codes_FK, codebooks_KCD)
        for _ in range(REFINE_SWEEPS):
            for codebook_CD, codes_F in zip(codebooks_KCD, codes_FK.T, strict=True):
                residual_FD += codebook_CD[codes_F]
                _set_to_means(codebook_CD, residual_FD, codes_F)
                residual_FD -= codebook_CD[codes_F]
    return codebooks_KCD


def _k_means(
    points_FD: torch.Tensor, num_centres: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run Lloyd's algorithm from random points. Return centres (C, D) and the nearest centre of each point (F,)."""
    centres_CD = points_FD[torch.randperm(len(points_FD), generator=generator)[:num_centres]].clone()
    for _ in range(KMEANS_ITERATIONS):
        nearest_F = search_codes(points_FD, centres_CD[None], 1)[:, 0]
        _set_to_means(centres_CD, points_FD, nearest_F)
    return centres_CD, search_codes(points_FD, centres_CD[None], 1)[:, 0]


def _set_to_means(centres_CD: torch.Tensor, points_FD: torch.Tensor, nearest_F: torch.Tensor) -> None:
    """Set each centre to the mean of its points, in place. A centre without points stays unchanged."""
    sums_CD = torch.zeros_like(centres_CD).index_add_(0, nearest_F, points_FD)
    counts_C = torch.bincount(nearest_F, minlength=len(centres_CD))
    used_C = counts_C > 0
    centres_CD[used_C] = sums_CD[used_C] / counts_C[used_C, None]
