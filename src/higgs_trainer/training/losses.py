"""The loss, in full. Every gradient of training comes from these functions.

For codebook k with N_k supervised cells *in the whole optimizer step* (all micro-batches, all ranks):

    audio_loss = sum_k w_k * (sum of cross-entropies over the cells of k / N_k) / sum_k w_k
    text_loss  = sum of cross-entropies over supervised text tokens / their number
    loss       = audio_weight * audio_loss + text_weight * text_loss

Sums and counts stay separate until the division, so any split of a batch into micro-batches and ranks gives the same
gradient. A codebook without a cell in the step contributes to neither sum. Only models that return logits over text
have a text loss.
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
    """The weights of the loss's terms. ``codebooks`` is w_k, one for each codebook; None means 1 for each."""

    audio: float = 1.0
    text: float = 0.0
    codebooks: tuple[float, ...] | None = None

    def list_codebook_weights(self, num_codebooks: int) -> tuple[float, ...]:
        """Return w_k of every codebook. Raises ``ValueError`` if there are not ``num_codebooks`` of them."""
        weights = self.codebooks if self.codebooks is not None else (1.0,) * num_codebooks
        if len(weights) != num_codebooks:
            raise ValueError(
                f"loss.codebook_weights has {len(weights)} weights, but the model has {num_codebooks} codebooks"
            )
        return weights


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy of M cells and, in the same pass, its gradient, in float32 or wider.

    The pass goes over blocks of rows that fit into the cache. ``F.cross_entropy`` keeps the log-probabilities of all
    logits and then fills two more tensors of their size. Here the only tensor of that size is the gradient, and with
    ``overwrite`` it takes the memory of the logits.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_MC: Tensor, targets_M: Tensor, label_smoothing: float, overwrite: bool
    ) -> Tensor:
        losses_M = logits_MC.new_empty(len(targets_M), dtype=_widen(logits_MC.dtype))
        gradient_MC = None
        if ctx.needs_input_grad[0]:
            gradient_MC = logits_MC if overwrite else torch.empty_like(logits_MC)
        for rows in _split_rows(logits_MC):
            gradient_RC = None if gradient_MC is None else gradient_MC[rows]
            losses_M[rows] = _compute_rows(logits_MC[rows], targets_M[rows], label_smoothing, gradient_RC)
        ctx.save_for_backward(gradient_MC)
        return losses_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor, None, None, None]:
        # The saved gradient is scaled in place; torch refuses a second backward, which would scale it again.
        (gradient_MC,) = ctx.saved_tensors
        return gradient_MC.mul_(grad_M[:, None]), None, None, None


def _compute_rows(
    logits_RC: Tensor, targets_R: Tensor, smoothing: float, gradient_RC: Tensor | None
) -> Tensor:
    """Return the cross-entropy of each row (R,), 0 where the target is ignored.

    The gradient is written to ``gradient_RC`` unless that is None. It may share its memory with the logits.
    """
    wide = _widen(logits_RC.dtype)
    # The errors can be computed in the memory of the gradient if the dtypes agree.
    errors_out_RC = gradient_RC if gradient_RC is not None and gradient_RC.dtype == wide else None
    logits_RC = logits_RC.to(wide)
    ignored_R1 = (targets_R == IGNORED)[:, None]
    keep_R1 = (~ignored_R1).to(wide)
    target_R1 = targets_R.clamp(min=0)[:, None]
    target_logit_R1 = logits_RC.gather(1, target_R1)
    if smoothing:
        target_logit_R1 = torch.lerp(target_logit_R1, logits_RC.mean(dim=-1, keepdim=True), smoothing)
    max_logit_R1 = logits_RC.amax(dim=-1, keepdim=True)
    errors_RC = torch.sub(logits_RC, max_logit_R1, out=errors_out_RC).exp_()
    sum_exp_R1 = errors_RC.sum(dim=-1, keepdim=True)
    losses_R1 = (max_logit_R1 + sum_exp_R1.log() - target_logit_R1).masked_fill_(ignored_R1, 0.0)
    if gradient_RC is not None:
        errors_RC.mul_(keep_R1 / sum_exp_R1)
        if smoothing:
            errors_RC.sub_(keep_R1 * (smoothing / errors_RC.shape[1]))
        errors_RC.scatter_add_(1, target_R1, keep_R1 * (smoothing - 1))
        if errors_out_RC is None:
            gradient_RC.copy_(errors_RC)
    return losses_R1[:, 0]


def _split_rows(logits_MC: Tensor) -> Iterator[slice]:
    """Split the rows into blocks: small enough for the cache of a CPU, or large enough for a GPU to be busy."""
    rows = ROWS_ON_A_CPU if logits_MC.device.type == "cpu" else ROWS_ON_A_GPU
    return (slice(start, start + rows) for start in range(0, len(logits_MC), rows))


def _widen(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def compute_cross_entropy_sums(
    logits_NKC: Tensor, targets_NK: Tensor, *, label_smoothing: float = 0.0, overwrite: bool = False
) -> Tensor:
    """Compute the sum of cross-entropies over the supervised cells of each codebook: (K,), in float32 or wider.

    Args:
        overwrite: write the gradient over the logits, which saves a tensor of their size. Only for a caller that does
            not read the logits afterwards.
    """
    N, K, C = logits_NKC.shape
    cells: Tensor = _CrossEntropy.apply(
        logits_NKC.reshape(N * K, C), targets_NK.reshape(N * K), label_smoothing, overwrite
    )
    return cells.reshape(N, K).sum(dim=0)


def compute_text_cross_entropy_sum(
    logits_MV: Tensor, targets_M: Tensor, *, label_smoothing: float = 0.0, overwrite: bool = False
) -> Tensor:
    """Compute the sum of cross-entropies over supervised text tokens: a scalar, 0 without any, in float32 or wider.

    ``overwrite`` is as in `compute_cross_entropy_sums`.
    """
    cells: Tensor = _CrossEntropy.apply(logits_MV, targets_M, label_smoothing, overwrite)
    return cells.sum()


def count_cells(targets: Tensor) -> Tensor:
    """Count the supervised cells of each codebook (K,) in targets (..., K)."""
    return (targets != IGNORED).flatten(0, -2).sum(dim=0)


def count_correct_first(logits_NKC: Tensor, targets_NK: Tensor) -> Tensor:
    """Count the supervised cells of codebook 0 whose target has the largest logit: a scalar.

    Codebook 0 carries the words. ``argmax`` would take three times as long.
    """
    logits_NC, is_cell_N = logits_NKC[:, 0], targets_NK[:, 0] != IGNORED
    target_N1 = targets_NK[:, :1].clamp(min=0)
    others_NC = logits_NC.scatter(1, target_N1, -torch.inf)
    return ((logits_NC.gather(1, target_N1)[:, 0] > others_NC.amax(dim=-1)) & is_cell_N).sum()


def compute_audio_loss(sums_K: Tensor, counts_K: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Compute the audio loss from sums of cross-entropies and the counts of the whole step: a scalar.

    ``sums_K`` may be those of one micro-batch: the losses of a step's micro-batches add up to the loss of the step.
    """
    weights_K = torch.tensor(weights, dtype=sums_K.dtype, device=sums_K.device) * (counts_K > 0)
    return (weights_K * sums_K / counts_K.clamp(min=1)).sum() / weights_K.sum()
