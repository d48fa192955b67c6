"""Run higgs-trainer on a CPU with the faster of bfloat16 and float32 matrix products for weights in bfloat16.

    python scripts/fast_products.py train recipe.yaml

A CPU without bfloat16 instructions takes several times longer for a product in bfloat16 than for one in float32. This
measures both. If float32 is faster, each frozen weight is converted to float32 for its product only, so memory does not
grow.
"""

import sys
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

TOKENS, INPUTS, OUTPUTS = 256, 3072, 2048
"""Shape of the product that is timed. The released model has 3,072 inputs."""
REPEATS = 3


class Float32Product(torch.autograd.Function):
    """Multiply by a frozen bfloat16 weight in float32. Only the weight is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, rows_PD: Tensor, weight_OD: Tensor) -> Tensor:
        ctx.save_for_backward(weight_OD)
        ctx.dtype = rows_PD.dtype
        return (rows_PD.float() @ weight_OD.float().T).to(torch.bfloat16)

    @staticmethod
    def backward(ctx: Any, gradient_PO: Tensor) -> tuple[Tensor, None]:
        (weight_OD,) = ctx.saved_tensors
        return (gradient_PO.float() @ weight_OD.float()).to(ctx.dtype), None


plain_linear = functional.linear


def linear_in_float32(rows_PD: Tensor, weight_OD: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Compute `torch.nn.functional.linear`, in float32 if the weight is frozen and in bfloat16."""
    if weight_OD.dtype is not torch.bfloat16 or weight_OD.requires_grad or bias_O is not None:
        return plain_linear(rows_PD, weight_OD, bias_O)
    with torch.autocast("cpu", enabled=False):
        product: Tensor = Float32Product.apply(rows_PD, weight_OD)
    return product


def time_product(linear: Any) -> float:
    """Return the shortest time of a product in bfloat16 (seconds)."""
    rows, weight = torch.ones(TOKENS, INPUTS).bfloat16(), torch.ones(OUTPUTS, INPUTS).bfloat16()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        linear(rows, weight)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Choose the products, and run the command."""
    if time_product(linear_in_float32) < time_product(plain_linear):
        functional.linear = linear_in_float32
    print(f"matrix products in {'bfloat16' if functional.linear is plain_linear else 'float32'}", flush=True)
    from higgs_trainer.cli import main as run

    run(sys.argv[1:])


if __name__ == "__main__":
    main()
