"""The order "columns of audio first" of the rows of a batch, in which a decoder layer applies its two FFNs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from higgs_trainer.dataset.layout import order_rows


@dataclass(frozen=True)
class RowOrder:
    """The M = B * T positions of a batch in the order "columns of audio first, then text".

    Attributes:
        is_audio_M: 1 at columns of audio, 0 at text.
        order_M: the position of each row in this order; ``inverse_M`` is its inverse.
        num_audio: the number of columns of audio.
    """

    is_audio_M: Tensor
    order_M: Tensor
    inverse_M: Tensor
    num_audio: int

    @classmethod
    def of(cls, audio_token_mask: Tensor) -> "RowOrder":
        """Compute the order from a mask (B, T) that is True at columns of audio. On a GPU, this waits for it."""
        is_audio_M = audio_token_mask.flatten().long()
        order_M, inverse_M = order_rows(is_audio_M)
        return cls(is_audio_M, order_M, inverse_M, int(is_audio_M.sum()))

    @classmethod
    def read(cls, layout: Mapping[str, Any]) -> "RowOrder":
        """Read the order from the layout of a batch (`build_layout`)."""
        return cls(layout["is_audio"], layout["order"], layout["inverse"], layout["num_audio"])

    def put_audio_first(self, rows_MD: Tensor) -> Tensor:
        """Bring rows (M, D) into this order."""
        rows: Tensor = _Reorder.apply(rows_MD, self.order_M, self.inverse_M)
        return rows

    def put_back(self, rows_MD: Tensor) -> Tensor:
        """Bring rows (M, D) in this order back into the order of the batch."""
        rows: Tensor = _Reorder.apply(rows_MD, self.inverse_M, self.order_M)
        return rows


class _Reorder(torch.autograd.Function):
    """Reorder rows (M, D). The inverse order is given, so the backward pass gathers too and fills no zeros."""

    @staticmethod
    def forward(ctx: Any, rows_MD: Tensor, order_M: Tensor, inverse_M: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_M)
        return rows_MD.index_select(0, order_M)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MD: Tensor) -> tuple[Tensor, None, None]:
        (inverse_M,) = ctx.saved_tensors
        return grad_MD.index_select(0, inverse_M), None, None
