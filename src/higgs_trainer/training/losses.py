"""The loss, whole. Everything that is trained goes through these functions.

For a codebook k with N_k supervised cells *in the whole optimizer step* (every micro-batch, every rank):

    audio_loss = sum_k w_k * (sum of cross-entropies over the cells of k / N_k) / sum_k w_k
    text_loss  = sum of cross-entropies over supervised text tokens / their number
    loss       = audio_weight * audio_loss + text_weight * text_loss

Sums and counts are kept apart until the division, so a batch may be cut into micro-batches and ranks in any way and
gives the same gradient. A codebook without a cell in the step takes no part in either sum.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from higgs_trainer.batch import IGNORED

ROWS_ON_A_CPU = 128
ROWS_ON_A_GPU = 16384


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


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropies of cells, some rows of logits at a time, in float32 at least.

    ``F.cross_entropy`` keeps the log-probabilities of all logits for the backward and then fills two more tensors of
    their size. Here nothing of that size is made but the gradient: the backward takes the softmax of a few rows again.
    """

    @staticmethod
    def forward(ctx: Any, logits_MC: Tensor, targets_M: Tensor, label_smoothing: float) -> Tensor:
        ctx.save_for_backward(logits_MC, targets_M)
        ctx.label_smoothing = label_smoothing
        losses = []
        for logits_RC, targets_R in _split_rows(logits_MC, targets_M):
            log_probabilities_RC = logits_RC.to(_accumulator(logits_RC)).log_softmax(dim=-1)
            losses_R = -log_probabilities_RC.gather(1, targets_R.clamp(min=0)[:, None])[:, 0]
            if label_smoothing:
                losses_R = torch.lerp(losses_R, -log_probabilities_RC.mean(dim=-1), label_smoothing)
            losses.append(losses_R.masked_fill(targets_R == IGNORED, 0.0))
        return torch.cat(losses) if losses else logits_MC.new_zeros(0, dtype=_accumulator(logits_MC))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor, None, None]:
        logits_MC, targets_M = ctx.saved_tensors
        smoothing, C = ctx.label_smoothing, logits_MC.shape[-1]
        gradient_MC = torch.empty_like(logits_MC)
        grad_M = grad_M.masked_fill(targets_M == IGNORED, 0.0)
        for logits_RC, targets_R, grad_R, out_RC in _split_rows(logits_MC, targets_M, grad_M, gradient_MC):
            errors_RC = logits_RC.to(_accumulator(logits_RC)).softmax(dim=-1)
            if smoothing:
                errors_RC -= smoothing / C
            right_R1 = targets_R.clamp(min=0)[:, None]
            errors_RC.scatter_add_(1, right_R1, errors_RC.new_full(right_R1.shape, smoothing - 1))
            torch.mul(errors_RC, grad_R[:, None], out=out_RC)
        return gradient_MC, None, None


def _split_rows(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows that go together: as many as a CPU's cache holds, and on a GPU so many that the calls cost nothing."""
    rows = ROWS_ON_A_CPU if tensors[0].device.type == "cpu" else ROWS_ON_A_GPU
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True) if len(tensors[0]) else iter(())


def _accumulator(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def cross_entropy_sums(logits_NKC: Tensor, targets_NK: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Sum of cross-entropies over the supervised cells of each codebook: (K,), in float32 at least."""
    N, K, C = logits_NKC.shape
    cells: Tensor = _CrossEntropy.apply(
        logits_NKC.reshape(N * K, C), targets_NK.reshape(N * K), label_smoothing
    )
    return cells.reshape(N, K).sum(dim=0)


def text_cross_entropy_sum(logits_MV: Tensor, targets_M: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Sum of cross-entropies over supervised text tokens: a scalar, in float32 at least; 0 where there is none."""
    cells: Tensor = _CrossEntropy.apply(logits_MV, targets_M, label_smoothing)
    return cells.sum()


def count_cells(targets: Tensor) -> Tensor:
    """The number of supervised cells of each codebook (K,), of targets (..., K)."""
    return (targets != IGNORED).flatten(0, -2).sum(dim=0)


def count_correct_first(logits_NKC: Tensor, targets_NK: Tensor) -> Tensor:
    """How many supervised cells of codebook 0, which carries the words, the most likely code gets right: a scalar."""
    return (logits_NKC[:, 0].argmax(dim=-1) == targets_NK[:, 0]).sum()


def mean_over_codebooks(sums_K: Tensor, counts_K: Tensor, weights: tuple[float, ...]) -> Tensor:
    """The audio loss, from sums of cross-entropies and from the counts of the whole step: a scalar.

    ``sums_K`` may be those of one micro-batch: the losses of a step's micro-batches then add up to the step's loss.
    """
    weights_K = torch.tensor(weights, dtype=sums_K.dtype, device=sums_K.device) * (counts_K > 0)
    return (weights_K * sums_K / counts_K.clamp(min=1)).sum() / weights_K.sum()
