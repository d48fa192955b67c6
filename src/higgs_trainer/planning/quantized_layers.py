"""Linear layers whose frozen weights take the memory of 4-bit weights, for counting only."""

from typing import Any

import torch
from torch import Tensor, nn

NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in NF4 with double quantization: 4 bits, an 8-bit scale of 64 weights, a scale of 256 scales."""


class _Product(torch.autograd.Function):
    """Multiply by weights that are expanded to the dtype of the inputs for the product only, as bitsandbytes does."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.shape = shape
        return rows @ packed.new_empty(shape, dtype=rows.dtype).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (packed,) = ctx.saved_tensors
        return gradients[0] @ packed.new_empty(ctx.shape, dtype=gradients[0].dtype), None, None


class PackedLinear(nn.Linear):
    """A linear layer with a weight of 4 bits. It computes nothing of use."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        num_bytes = round(linear.weight.numel() * NF4_BYTES)
        self.compute_dtype = dtype
        packed = torch.empty(num_bytes, dtype=torch.uint8, device="meta")
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        """Multiply (..., in) to (..., out)."""
        rows = input.to(self.compute_dtype)
        output: Tensor = _Product.apply(rows, self.weight, (self.out_features, self.in_features))
        return output.to(input.dtype)


def quantize_layers(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace the linear layers of the decoder, but not the heads, as transformers does for bitsandbytes."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and ".layers." in f".{name}":
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], PackedLinear(module, dtype))
