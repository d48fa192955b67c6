"""Sum the terms of the loss until the next log, and compute metrics from the sums."""

import time
from typing import Any

import torch
from torch import Tensor

from higgs_trainer.tensors import FRAMES_PER_SECOND
from higgs_trainer.training.losses import compute_audio_loss


def choose_sum_dtype(device: torch.device) -> torch.dtype:
    """Choose the dtype in which many values are added: float64, or float32 on Apple's MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


class LossTotals:
    """Sums since the last `clear`: cross-entropies and cells of each codebook, correct predictions, text, tokens.

    The sums stay on the device of the loss, so that adding to them does not wait for it.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Set all sums to zero and restart the clock."""
        # Cross-entropies and cells of each codebook, (2, K).
        self._sums: Tensor | None = None
        # Correct predictions of codebook 0.
        self._correct: Tensor | None = None
        # Cross-entropies and number of text tokens, (2,).
        self._text: Tensor | None = None
        # Tokens, and the capacity of their batches, (2,).
        self._tokens: Tensor | None = None
        self._since = time.perf_counter()

    @property
    def started(self) -> bool:
        """Whether anything was added since the last `clear`."""
        return self._sums is not None

    @property
    def num_codebooks(self) -> int:
        """K, or 0 before anything was added."""
        return 0 if self._sums is None else self._sums.shape[1]

    def add(self, sums_K: Tensor, cells_K: Tensor, correct_first: Tensor) -> None:
        """Add the audio cells of one micro-batch."""
        dtype = choose_sum_dtype(sums_K.device)
        addend = torch.stack([sums_K.detach().to(dtype), cells_K.to(dtype)])
        self._sums = addend if self._sums is None else self._sums + addend
        self._correct = correct_first if self._correct is None else self._correct + correct_first

    def add_text(self, text_sum: Tensor, tokens: int) -> None:
        """Add the supervised text tokens of one micro-batch."""
        dtype = choose_sum_dtype(text_sum.device)
        addend = torch.stack([text_sum.detach().to(dtype), text_sum.new_tensor(tokens, dtype=dtype)])
        self._text = addend if self._text is None else self._text + addend

    def add_tokens(self, tokens: int, capacity: int) -> None:
        """Add the number of tokens of one micro-batch, and the number that it could hold."""
        addend = torch.tensor([tokens, capacity], dtype=torch.float64)
        self._tokens = addend if self._tokens is None else self._tokens + addend

    def leave_out(self, seconds: float) -> None:
        """Leave seconds without training out of the speed."""
        self._since += seconds

    def reduce(self, accelerator: Any) -> "LossTotals":
        """Return the totals of all ranks."""
        reduced = LossTotals()
        reduced._since = self._since
        if self._sums is not None:
            reduced._sums = accelerator.reduce(self._sums, reduction="sum")
            reduced._correct = accelerator.reduce(self._correct, reduction="sum")
        if self._text is not None:
            reduced._text = accelerator.reduce(self._text, reduction="sum")
        if self._tokens is not None:
            device = accelerator.device
            tokens = self._tokens.to(device, choose_sum_dtype(device))
            reduced._tokens = accelerator.reduce(tokens, reduction="sum")
        return reduced

    def compute_metrics(self, prefix: str, weights: tuple[float, ...]) -> dict[str, float]:
        """Compute the metrics; their names begin with ``prefix``.

        ``audio_loss``, ``text_loss`` if there is one, ``codebook_k_loss``, ``codebook_0_accuracy`` and
        ``audio_seconds_per_second``; in training also ``tokens``, ``tokens_per_second`` and ``fill``.
        """
        if self._sums is None or self._correct is None:
            return {}
        sums_K, cells_K = self._sums
        per_codebook = (sums_K / cells_K.clamp(min=1)).tolist()
        elapsed_seconds = time.perf_counter() - self._since
        text = {} if self._text is None else {f"{prefix}text_loss": float(self._text[0] / self._text[1])}
        return {
            f"{prefix}audio_loss": float(compute_audio_loss(sums_K, cells_K, weights)),
            **text,
            **{f"{prefix}codebook_{k}_loss": value for k, value in enumerate(per_codebook)},
            f"{prefix}codebook_0_accuracy": float(self._correct / cells_K[0].clamp(min=1)),
            f"{prefix}audio_seconds_per_second": float(cells_K[0]) / FRAMES_PER_SECOND / elapsed_seconds,
            **self._compute_token_metrics(prefix, elapsed_seconds),
        }

    def _compute_token_metrics(self, prefix: str, elapsed_seconds: float) -> dict[str, float]:
        if self._tokens is None:
            return {}
        tokens, capacity = self._tokens.tolist()
        return {
            f"{prefix}tokens": tokens,
            f"{prefix}tokens_per_second": tokens / elapsed_seconds,
            f"{prefix}fill": tokens / capacity,
        }


def list_held_out_metrics(num_codebooks: int) -> list[str]:
    """List the metrics that an evaluation computes from the loss. The best checkpoint can be chosen by any of them."""
    terms = ["loss", "audio_loss", "codebook_0_accuracy"]
    return [f"eval_{name}" for name in (*terms, *(f"codebook_{k}_loss" for k in range(num_codebooks)))]
