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

from higgs_trainer.tensors import IGNORED

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
    """Cross-entropies of cells (M,) and, in the same pass, their gradient: some rows of logits at a time, while a cache
    holds them, in float32 at least.

    ``F.cross_entropy`` keeps the log-probabilities of all logits and then fills two more tensors of their size. Here
    the gradient is all that is made, and with ``overwrite`` it takes the logits' own place.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_MC: Tensor, targets_M: Tensor, label_smoothing: float, overwrite: bool
    ) -> Tensor:
        losses_M = logits_MC.new_empty(len(targets_M), dtype=_accumulator(logits_MC))
        gradient_MC = None
        if ctx.needs_input_grad[0]:
            gradient_MC = logits_MC if overwrite else torch.empty_like(logits_MC)
        for rows in _split_rows(logits_MC):
            room_RC = None if gradient_MC is None else gradient_MC[rows]
            losses_M[rows] = _differentiate(logits_MC[rows], targets_M[rows], label_smoothing, room_RC)
        ctx.save_for_backward(gradient_MC)
        return losses_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_MC,) = ctx.saved_tensors  # a second backward is refused here: it would scale it once more
        return gradient_MC.mul_(grad_M[:, None]), None, None, None


def _differentiate(
    logits_RC: Tensor, targets_R: Tensor, smoothing: float, gradient_RC: Tensor | None
) -> Tensor:
    """The cross-entropy of each row (R,), 0 where nothing is supervised; its gradient is written where that is wanted,
    over the logits themselves if need be."""
    wide = _accumulator(logits_RC)
    room_RC = gradient_RC if gradient_RC is not None and gradient_RC.dtype == wide else None
    logits_RC = logits_RC.to(wide)
    ignored_R1 = (targets_R == IGNORED)[:, None]
    keep_R1 = (~ignored_R1).to(wide)
    right_R1 = targets_R.clamp(min=0)[:, None]
    aimed_at_R1 = logits_RC.gather(1, right_R1)
    if smoothing:
        aimed_at_R1 = torch.lerp(aimed_at_R1, logits_RC.mean(dim=-1, keepdim=True), smoothing)
    highest_R1 = logits_RC.amax(dim=-1, keepdim=True)
    errors_RC = torch.sub(logits_RC, highest_R1, out=room_RC).exp_()
    total_R1 = errors_RC.sum(dim=-1, keepdim=True)
    losses_R1 = (highest_R1 + total_R1.log() - aimed_at_R1).masked_fill_(ignored_R1, 0.0)
    if gradient_RC is not None:
        errors_RC.mul_(keep_R1 / total_R1)
        if smoothing:
            errors_RC.sub_(keep_R1 * (smoothing / errors_RC.shape[1]))
        errors_RC.scatter_add_(1, right_R1, keep_R1 * (smoothing - 1))
        if room_RC is None:
            gradient_RC.copy_(errors_RC)
    return losses_R1[:, 0]


def _split_rows(logits_MC: Tensor) -> Iterator[slice]:
    """Rows that go together: as many as a CPU's cache holds, and on a GPU so many that the calls cost nothing."""
    rows = ROWS_ON_A_CPU if logits_MC.device.type == "cpu" else ROWS_ON_A_GPU
    return (slice(start, start + rows) for start in range(0, len(logits_MC), rows))


def _accumulator(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def cross_entropy_sums(
    logits_NKC: Tensor, targets_NK: Tensor, *, label_smoothing: float = 0.0, overwrite: bool = False
) -> Tensor:
    """Sum of cross-entropies over the supervised cells of each codebook: (K,), in float32 at least.

    ``overwrite``: where a gradient is wanted, it is written over the logits, which saves a tensor of their size. For a
    caller who throws the logits away.
    """
    N, K, C = logits_NKC.shape
    cells: Tensor = _CrossEntropy.apply(
        logits_NKC.reshape(N * K, C), targets_NK.reshape(N * K), label_smoothing, overwrite
    )
    return cells.reshape(N, K).sum(dim=0)


def text_cross_entropy_sum(
    logits_MV: Tensor, targets_M: Tensor, *, label_smoothing: float = 0.0, overwrite: bool = False
) -> Tensor:
    """Sum of cross-entropies over supervised text tokens: a scalar, in float32 at least; 0 where there is none.
    ``overwrite`` as above."""
    cells: Tensor = _CrossEntropy.apply(logits_MV, targets_M, label_smoothing, overwrite)
    return cells.sum()


def count_cells(targets: Tensor) -> Tensor:
    """The number of supervised cells of each codebook (K,), of targets (..., K)."""
    return (targets != IGNORED).flatten(0, -2).sum(dim=0)


def count_correct_first(logits_NKC: Tensor, targets_NK: Tensor) -> Tensor:
    """How many supervised cells of codebook 0, which carries the words, have a target likelier than every other code: a
    scalar. (``argmax`` takes three times as long.)"""
    logits_NC, is_cell_N = logits_NKC[:, 0], targets_NK[:, 0] != IGNORED
    right_N1 = targets_NK[:, :1].clamp(min=0)
    others_NC = logits_NC.scatter(1, right_N1, -torch.inf)
    return ((logits_NC.gather(1, right_N1)[:, 0] > others_NC.amax(dim=-1)) & is_cell_N).sum()


def mean_over_codebooks(sums_K: Tensor, counts_K: Tensor, weights: tuple[float, ...]) -> Tensor:
    """The audio loss, from sums of cross-entropies and from the counts of the whole step: a scalar.

    ``sums_K`` may be those of one micro-batch: the losses of a step's micro-batches then add up to the step's loss.
    """
    weights_K = torch.tensor(weights, dtype=sums_K.dtype, device=sums_K.device) * (counts_K > 0)
    return (weights_K * sums_K / counts_K.clamp(min=1)).sum() / weights_K.sum()
