"""The loss, whole. Everything that is trained goes through these functions.

For a codebook k with N_k supervised cells *in the whole optimizer step* (every micro-batch, every rank):

    audio_loss = sum_k w_k * (sum of cross-entropies over the cells of k / N_k) / sum_k w_k
    text_loss  = sum of cross-entropies over supervised text tokens / their number
    loss       = audio_weight * audio_loss + text_weight * text_loss

Sums and counts are kept apart until the division, so a batch may be cut into micro-batches and ranks in any way and
gives the same gradient. A codebook without a cell in the step takes no part in either sum.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from higgs_trainer.batch import IGNORED


@dataclass(frozen=True)
class LossWeights:
    """The knobs of the loss. ``codebooks``: w_k, one a codebook; all 1 where None."""

    audio: float = 1.0
    text: float = 0.0
    codebooks: tuple[float, ...] | None = None

    def of_codebooks(self, num_codebooks: int) -> tuple[float, ...]:
        """w_k for every codebook; ``ValueError`` where their number is wrong."""
        weights = self.codebooks if self.codebooks is not None else (1.0,) * num_codebooks
        if len(weights) != num_codebooks:
            raise ValueError(
                f"loss.codebook_weights has {len(weights)} weights, the model {num_codebooks} codebooks"
            )
        return weights


def cross_entropy_sums(logits_NKC: Tensor, targets_NK: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Sum of cross-entropies over the supervised cells of each codebook: (K,), float32."""
    N, K, C = logits_NKC.shape
    cells_NK = F.cross_entropy(
        logits_NKC.reshape(N * K, C).float(),
        targets_NK.reshape(N * K),
        ignore_index=IGNORED,
        reduction="none",
        label_smoothing=label_smoothing,
    ).reshape(N, K)
    return cells_NK.sum(dim=0)


def text_cross_entropy_sum(logits_MV: Tensor, targets_M: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Sum of cross-entropies over supervised text tokens: a scalar, float32; 0 where there is none."""
    return F.cross_entropy(
        logits_MV.float(), targets_M, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing
    )


def count_cells(targets: Tensor) -> Tensor:
    """The number of supervised cells of each codebook (K,), of targets (..., K)."""
    return (targets != IGNORED).flatten(0, -2).sum(dim=0)


def count_correct(logits_NKC: Tensor, targets_NK: Tensor) -> Tensor:
    """How many supervised cells of each codebook the most likely code gets right: (K,)."""
    return (logits_NKC.argmax(dim=-1) == targets_NK).sum(dim=0)


def mean_over_codebooks(sums_K: Tensor, counts_K: Tensor, weights: tuple[float, ...]) -> Tensor:
    """The audio loss, from sums of cross-entropies and from the counts of the whole step: a scalar.

    ``sums_K`` may be those of one micro-batch: the losses of a step's micro-batches then add up to the step's loss.
    """
    weights_K = torch.tensor(weights, dtype=sums_K.dtype, device=sums_K.device) * (counts_K > 0)
    return (weights_K * sums_K / counts_K.clamp(min=1)).sum() / weights_K.sum()
