"""The loss against a reference written in NumPy from design's text alone: sums, counts and one division a codebook."""

import numpy as np
import pytest
import torch

from higgs_trainer.batch import IGNORED
from higgs_trainer.training.losses import (
    LossWeights,
    count_cells,
    count_correct,
    cross_entropy_sums,
    mean_over_codebooks,
    text_cross_entropy_sum,
)

N, K, C = 11, 3, 7  # pairwise different, odd: a transposition fails


def reference_loss(logits_NKC, targets_NK, weights, smoothing=0.0):
    """audio_loss of the design, cell by cell, in float64."""
    total, weight_sum = 0.0, 0.0
    for k, weight in enumerate(weights):
        cells = []
        for n in range(logits_NKC.shape[0]):
            if targets_NK[n, k] == IGNORED:
                continue
            z = logits_NKC[n, k]
            log_p = z - z.max() - np.log(np.exp(z - z.max()).sum())
            cells.append(-(1 - smoothing) * log_p[targets_NK[n, k]] - smoothing * log_p.mean())
        if cells:
            total += weight * np.mean(cells)
            weight_sum += weight
    return total / weight_sum


def draw(seed=0, unsupervised_codebook=None):
    generator = torch.Generator().manual_seed(seed)
    logits_NKC = torch.randn(N, K, C, generator=generator, dtype=torch.float64) * 3
    targets_NK = torch.randint(C, (N, K), generator=generator)
    targets_NK[torch.rand(N, K, generator=generator) < 0.3] = IGNORED
    if unsupervised_codebook is not None:
        targets_NK[:, unsupervised_codebook] = IGNORED
    return logits_NKC, targets_NK


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (3.0, 1.5, 0.25)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("unsupervised_codebook", [None, 1])
def test_the_loss_is_the_reference(weights, smoothing, unsupervised_codebook):
    logits_NKC, targets_NK = draw(unsupervised_codebook=unsupervised_codebook)
    sums_K = cross_entropy_sums(logits_NKC, targets_NK, label_smoothing=smoothing)
    loss = mean_over_codebooks(sums_K, count_cells(targets_NK), weights)
    expected = reference_loss(logits_NKC.numpy(), targets_NK.numpy(), weights, smoothing)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_micro_batches_add_up_to_the_step():
    logits_NKC, targets_NK = draw()
    step_counts_K = count_cells(targets_NK)
    whole = mean_over_codebooks(cross_entropy_sums(logits_NKC, targets_NK), step_counts_K, (1.0,) * K)
    parts = [
        mean_over_codebooks(cross_entropy_sums(logits, targets), step_counts_K, (1.0,) * K)
        for logits, targets in zip(logits_NKC.split([1, 7, 3]), targets_NK.split([1, 7, 3]), strict=True)
    ]
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-6)


def test_a_micro_batch_without_a_cell_adds_nothing():
    logits_NKC, targets_NK = draw()
    nothing = mean_over_codebooks(
        cross_entropy_sums(logits_NKC, torch.full_like(targets_NK, IGNORED)),
        count_cells(targets_NK),
        (1.0,) * K,
    )
    assert float(nothing) == 0.0


def test_counts_are_of_each_codebook():
    targets = torch.full((2, 5, K), IGNORED)
    targets[0, 1, 0] = targets[1, 4, 0] = targets[1, 2, 2] = 3
    assert count_cells(targets).tolist() == [2, 0, 1]


def test_a_wrong_number_of_weights_is_named():
    with pytest.raises(ValueError, match=r"2 weights.*3 codebooks"):
        LossWeights(codebooks=(1.0, 2.0)).of_codebooks(3)


def test_right_answers_are_counted_for_each_codebook():
    logits_NKC, targets_NK = draw()
    expected = [
        sum(targets_NK[n, k] == logits_NKC[n, k].argmax() for n in range(N) if targets_NK[n, k] != IGNORED)
        for k in range(K)
    ]
    assert count_correct(logits_NKC, targets_NK).tolist() == [int(count) for count in expected]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_text_term_is_the_reference(smoothing):
    M, V = 13, 17
    generator = torch.Generator().manual_seed(1)
    logits_MV = torch.randn(M, V, generator=generator, dtype=torch.float64) * 3
    targets_M = torch.randint(V, (M,), generator=generator)
    targets_M[::5] = IGNORED
    supervised = int((targets_M != IGNORED).sum())
    loss = text_cross_entropy_sum(logits_MV, targets_M, label_smoothing=smoothing) / supervised
    expected = reference_loss(logits_MV[:, None].numpy(), targets_M[:, None].numpy(), (1.0,), smoothing)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_half_precision_logits_are_summed_in_float32():
    logits_NKC, targets_NK = draw()
    halves = logits_NKC.bfloat16()
    sums_K = cross_entropy_sums(halves, targets_NK)
    assert sums_K.dtype == torch.float32
    assert torch.allclose(sums_K, cross_entropy_sums(halves.double(), targets_NK).float(), rtol=1e-5)


def test_the_gradient_is_that_of_the_reference():
    """By finite differences of the NumPy loss, at some cells of every codebook."""
    logits_NKC, targets_NK = draw()
    weights = (3.0, 1.5, 0.25)
    logits_NKC.requires_grad_()
    mean_over_codebooks(
        cross_entropy_sums(logits_NKC, targets_NK), count_cells(targets_NK), weights
    ).backward()
    for n, k, c in [(0, 0, 1), (3, 1, 6), (7, 2, 0), (10, 0, 5), (5, 2, 4)]:
        nudged = [logits_NKC.detach().numpy().copy() for _ in range(2)]
        nudged[0][n, k, c] += 1e-5
        nudged[1][n, k, c] -= 1e-5
        up, down = (reference_loss(logits, targets_NK.numpy(), weights) for logits in nudged)
        assert float(logits_NKC.grad[n, k, c]) == pytest.approx((up - down) / 2e-5, rel=1e-4, abs=1e-9)
