"""The loss against a reference in NumPy that was written from the definition: sums, counts, one division a codebook."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from higgs_trainer.tensors import IGNORED
from higgs_trainer.training import losses
from higgs_trainer.training.losses import (
    LossWeights,
    compute_audio_loss,
    compute_cross_entropy_sums,
    compute_text_cross_entropy_sum,
    count_cells,
    count_correct_first,
)

# Odd and pairwise different, so that a transposition fails.
N, K, C = 11, 3, 7


def reference_loss(logits_NKC, targets_NK, weights, smoothing=0.0):
    """Compute the audio loss cell by cell, in float64."""
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
    sums_K = compute_cross_entropy_sums(logits_NKC, targets_NK, label_smoothing=smoothing)
    loss = compute_audio_loss(sums_K, count_cells(targets_NK), weights)
    expected = reference_loss(logits_NKC.numpy(), targets_NK.numpy(), weights, smoothing)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_micro_batches_add_up_to_the_step():
    logits_NKC, targets_NK = draw()
    step_counts_K = count_cells(targets_NK)
    whole = compute_audio_loss(compute_cross_entropy_sums(logits_NKC, targets_NK), step_counts_K, (1.0,) * K)
    parts = [
        compute_audio_loss(compute_cross_entropy_sums(logits, targets), step_counts_K, (1.0,) * K)
        for logits, targets in zip(logits_NKC.split([1, 7, 3]), targets_NK.split([1, 7, 3]), strict=True)
    ]
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-6)


def test_a_micro_batch_without_a_cell_adds_nothing():
    logits_NKC, targets_NK = draw()
    nothing = compute_audio_loss(
        compute_cross_entropy_sums(logits_NKC, torch.full_like(targets_NK, IGNORED)),
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
        LossWeights(codebooks=(1.0, 2.0)).list_codebook_weights(3)


def test_correct_predictions_of_the_first_codebook_are_counted():
    logits_NKC, targets_NK = draw()
    supervised = [n for n in range(N) if targets_NK[n, 0] != IGNORED]
    expected = sum(int(targets_NK[n, 0] == logits_NKC[n, 0].argmax()) for n in supervised)
    assert 0 < expected < len(supervised)
    assert int(count_correct_first(logits_NKC, targets_NK)) == expected
    # With equal logits no prediction is correct.
    assert int(count_correct_first(torch.zeros_like(logits_NKC), targets_NK)) == 0
    logits_NKC[..., 0] = 99
    assert int(count_correct_first(logits_NKC, torch.full_like(targets_NK, IGNORED))) == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_text_term_is_the_reference(smoothing):
    M, V = 13, 17
    generator = torch.Generator().manual_seed(1)
    logits_MV = torch.randn(M, V, generator=generator, dtype=torch.float64) * 3
    targets_M = torch.randint(V, (M,), generator=generator)
    targets_M[::5] = IGNORED
    supervised = int((targets_M != IGNORED).sum())
    loss = compute_text_cross_entropy_sum(logits_MV, targets_M, label_smoothing=smoothing) / supervised
    expected = reference_loss(logits_MV[:, None].numpy(), targets_M[:, None].numpy(), (1.0,), smoothing)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_half_precision_logits_are_summed_in_float32():
    logits_NKC, targets_NK = draw()
    halves = logits_NKC.bfloat16()
    sums_K = compute_cross_entropy_sums(halves, targets_NK)
    assert sums_K.dtype == torch.float32
    assert torch.allclose(sums_K, compute_cross_entropy_sums(halves.double(), targets_NK).float(), rtol=1e-5)


def test_the_gradient_is_that_of_the_reference():
    """Compare with finite differences of the NumPy loss, at cells of every codebook."""
    logits_NKC, targets_NK = draw()
    weights = (3.0, 1.5, 0.25)
    logits_NKC.requires_grad_()
    compute_audio_loss(
        compute_cross_entropy_sums(logits_NKC, targets_NK), count_cells(targets_NK), weights
    ).backward()
    for n, k, c in [(0, 0, 1), (3, 1, 6), (7, 2, 0), (10, 0, 5), (5, 2, 4)]:
        nudged = [logits_NKC.detach().numpy().copy() for _ in range(2)]
        nudged[0][n, k, c] += 1e-5
        nudged[1][n, k, c] -= 1e-5
        up, down = (reference_loss(logits, targets_NK.numpy(), weights) for logits in nudged)
        assert float(logits_NKC.grad[n, k, c]) == pytest.approx((up - down) / 2e-5, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [1, 5, 1000])
@pytest.mark.parametrize("overwrite", [False, True])
def test_the_cross_entropy_is_torchs_for_any_size_of_blocks(smoothing, rows, overwrite, monkeypatch):
    monkeypatch.setattr(losses, "ROWS_ON_A_CPU", rows)
    logits_NKC, targets_NK = draw()
    logits_NKC.requires_grad_()
    upstream_K = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)

    def torchs():
        cells = torch.nn.functional.cross_entropy(
            logits_NKC.flatten(0, 1), targets_NK.flatten(), reduction="none", label_smoothing=smoothing
        )
        return cells.reshape(N, K).sum(dim=0)

    expected = torchs()
    ours = compute_cross_entropy_sums(
        logits_NKC * 1, targets_NK, label_smoothing=smoothing, overwrite=overwrite
    )
    assert torch.allclose(ours, expected, rtol=1e-12)
    gradients = [torch.autograd.grad(sums_K @ upstream_K, logits_NKC)[0] for sums_K in (ours, expected)]
    assert torch.allclose(*gradients, rtol=1e-12, atol=1e-15)


def test_a_batch_without_rows_keeps_the_graph():
    logits_NKC = torch.zeros(0, K, C, requires_grad=True)
    sums_K = compute_cross_entropy_sums(logits_NKC, torch.zeros(0, K, dtype=torch.long))
    assert sums_K.tolist() == [0.0] * K
    sums_K.sum().backward()
    assert logits_NKC.grad.shape == (0, K, C)


@pytest.mark.parametrize("overwrite", [False, True])
def test_only_the_gradient_takes_as_much_memory_as_the_logits(overwrite):
    class Watch(TorchDispatchMode):
        made: list

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.untyped_storage().nbytes() >= logits_NKC.nbytes:
                self.made.append(result.untyped_storage().data_ptr())
            return result

    logits_NKC = torch.randn(400, K, C, requires_grad=True) + 0.0
    targets_NK = torch.zeros(400, K, dtype=torch.long)
    with Watch() as watch:
        watch.made = []
        loss = compute_cross_entropy_sums(logits_NKC, targets_NK, overwrite=overwrite).sum()
        (gradient,) = torch.autograd.grad(loss, logits_NKC)
    room = {logits_NKC.untyped_storage().data_ptr(), gradient.untyped_storage().data_ptr()}
    assert set(watch.made) <= room
    assert len(room) == (1 if overwrite else 2)


def test_logits_stay_if_they_need_no_gradient():
    logits_NKC, targets_NK = draw()
    before = logits_NKC.clone()
    compute_cross_entropy_sums(logits_NKC, targets_NK, overwrite=True)
    assert torch.equal(logits_NKC, before)


def test_overwriting_logits_that_another_loss_needs_is_an_error():
    logits_NKC, targets_NK = draw()
    logits_NKC = logits_NKC.requires_grad_() * 1
    other = logits_NKC.exp().sum() + (logits_NKC**2).sum()
    loss = compute_cross_entropy_sums(logits_NKC, targets_NK, overwrite=True).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (other + loss).backward()


def test_a_second_backward_which_would_scale_the_gradient_twice_is_an_error():
    logits_NKC, targets_NK = draw()
    loss = compute_cross_entropy_sums(logits_NKC.requires_grad_(), targets_NK).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_gradient_of_halves_is_that_of_floats(overwrite):
    logits_NKC, targets_NK = draw()
    logits_NKC = logits_NKC.bfloat16()
    gradients = []
    for logits in (logits_NKC, logits_NKC.double()):
        logits.requires_grad_()
        loss = compute_cross_entropy_sums(logits * 1, targets_NK, overwrite=overwrite).sum() / 7
        gradients.append(torch.autograd.grad(loss, logits)[0])
    assert gradients[0].dtype == torch.bfloat16
    assert torch.allclose(gradients[0].double(), gradients[1], rtol=0.01)
