"""Measure forward and backward of the loss over codes, ours and torch's: ``python benchmarks/cross_entropy.py``.

CPU milliseconds of one thread, the arms in turn; the first use of fresh memory is in them, as it is in training.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from higgs_trainer.training.losses import compute_cross_entropy_sums

FRAMES, NUM_CODEBOOKS, NUM_LOGITS = 1240, 8, 1026
ROUNDS = 15


class Head(torch.autograd.Function):
    """Replaces the model's head: returns the logits, and ignores their gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, logits: Tensor) -> Tensor:
        ctx.mark_dirty(logits)
        return logits

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.new_zeros(()), None


def of_torch(logits_NKC: Tensor, targets_NK: Tensor) -> Tensor:
    """The sums of each codebook by ``F.cross_entropy``."""
    cells = F.cross_entropy(logits_NKC.flatten(0, 1), targets_NK.flatten(), reduction="none")
    return cells.reshape(targets_NK.shape).sum(dim=0)


def overwriting(logits_NKC: Tensor, targets_NK: Tensor) -> Tensor:
    """Ours as in training."""
    return compute_cross_entropy_sums(logits_NKC, targets_NK, overwrite=True)


ARMS = {"F.cross_entropy": of_torch, "ours": compute_cross_entropy_sums, "ours, overwriting": overwriting}


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    targets_NK = torch.randint(NUM_LOGITS, (FRAMES, NUM_CODEBOOKS))
    milliseconds: dict[str, list[float]] = {name: [] for name in ARMS}
    for _ in range(ROUNDS):
        for name, sums in ARMS.items():
            milliseconds[name].append(time_pass(sums, targets_NK))
    print(f"{FRAMES} frames of {NUM_CODEBOOKS} x {NUM_LOGITS} logits, float32")
    for name, values in milliseconds.items():
        print(f"{name:18} {statistics.median(values):6.1f} ms ({min(values):.1f}-{max(values):.1f})")


def time_pass(sums: Callable[[Tensor, Tensor], Tensor], targets_NK: Tensor) -> float:
    """CPU milliseconds from the logits to their gradient."""
    weight = torch.zeros((), requires_grad=True)
    logits_NKC = Head.apply(weight, torch.randn(FRAMES, NUM_CODEBOOKS, NUM_LOGITS))
    since = time.process_time()
    (sums(logits_NKC, targets_NK).sum() / targets_NK.numel()).backward()
    return 1000 * (time.process_time() - since)


if __name__ == "__main__":
    main()
