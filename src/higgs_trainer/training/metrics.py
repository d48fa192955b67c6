"""What the loss is made of, summed until the next log: codebook losses, accuracy, tokens, speed."""

import time
from typing import Any

import torch
from torch import Tensor

from higgs_trainer.training.losses import compute_audio_loss

FRAMES_PER_SECOND = 25


class LossTotals:
    """Sums of cross-entropies and cells of each codebook (K,), and right answers of the first, since the last `clear`;
    and of text."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything and start the clock again."""
        self._sums: Tensor | None = None  # (2, K): cross-entropies, cells
        self._correct: Tensor | None = None  # right answers of codebook 0
        self._text: Tensor | None = None  # (2,): cross-entropies, tokens
        self._tokens: Tensor | None = None  # (2,): tokens, and the room that there was for them
        self._since = time.perf_counter()

    @property
    def started(self) -> bool:
        """Whether anything was added."""
        return self._sums is not None

    @property
    def num_codebooks(self) -> int:
        """K; 0 before anything was added."""
        return 0 if self._sums is None else self._sums.shape[1]

    def add(self, sums_K: Tensor, cells_K: Tensor, correct_first: Tensor) -> None:
        """Add one micro-batch."""
        addend = torch.stack([sums_K.detach().double(), cells_K.double()])
        self._sums = addend if self._sums is None else self._sums + addend
        self._correct = correct_first if self._correct is None else self._correct + correct_first

    def add_text(self, text_sum: Tensor, tokens: int) -> None:
        """Add the text of one micro-batch."""
        addend = torch.stack([text_sum.detach().double(), text_sum.new_tensor(tokens, dtype=torch.float64)])
        self._text = addend if self._text is None else self._text + addend

    def add_tokens(self, tokens: int, room: int) -> None:
        """Add the tokens of one micro-batch, and as many as it could have held."""
        addend = torch.tensor([tokens, room], dtype=torch.float64)
        self._tokens = addend if self._tokens is None else self._tokens + addend

    def leave_out(self, seconds: float) -> None:
        """Seconds in which nothing was trained do not count for the speed."""
        self._since += seconds

    def reduce(self, accelerator: Any) -> "LossTotals":
        """The totals of all ranks."""
        reduced = LossTotals()
        reduced._since = self._since
        if self._sums is not None:
            reduced._sums = accelerator.reduce(self._sums, reduction="sum")
            reduced._correct = accelerator.reduce(self._correct, reduction="sum")
        if self._text is not None:
            reduced._text = accelerator.reduce(self._text, reduction="sum")
        if self._tokens is not None:
            reduced._tokens = accelerator.reduce(self._tokens.to(accelerator.device), reduction="sum")
        return reduced

    def metrics(self, prefix: str, weights: tuple[float, ...]) -> dict[str, float]:
        """``audio_loss``, ``text_loss`` where there is one, ``codebook_k_loss``, ``codebook_0_accuracy``,
        ``audio_seconds_per_second``; in training ``tokens``, ``tokens_per_second`` and ``fill``."""
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
            **self._count_tokens(prefix, elapsed_seconds),
        }

    def _count_tokens(self, prefix: str, elapsed_seconds: float) -> dict[str, float]:
        if self._tokens is None:
            return {}
        tokens, room = self._tokens.tolist()
        return {
            f"{prefix}tokens": tokens,
            f"{prefix}tokens_per_second": tokens / elapsed_seconds,
            f"{prefix}fill": tokens / room,
        }


def list_held_out_metrics(num_codebooks: int) -> list[str]:
    """List the metrics that an evaluation computes from the loss, by which the best checkpoint can be chosen."""
    terms = ["loss", "audio_loss", "codebook_0_accuracy"]
    return [f"eval_{name}" for name in (*terms, *(f"codebook_{k}_loss" for k in range(num_codebooks)))]
