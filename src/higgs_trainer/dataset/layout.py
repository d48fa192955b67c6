"""The layout of a batch: which rows are audio, which are kept, and where examples end.

Everything in it follows from the batch. But on a GPU, the host waits for each number and each boolean mask that it
needs, which transformers' layers do some 30 times each. The collator computes the layout once, on the CPU, and the
model selects rows by index. The M = B * T positions of a batch are its rows, in order of batch and time.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from higgs_trainer.tensors import IGNORED


def build_layout(
    is_audio_BT: Tensor,
    is_column_BP: Tensor,
    keep_BT: Tensor,
    labels_BPK: Tensor,
    example_lengths: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Build the layout of a batch.

    Args:
        is_audio_BT: True at the placeholders of columns.
        is_column_BP: True at columns that are not padding.
        keep_BT: True at the positions whose logits are needed.
        labels_BPK: the targets of the columns.
        example_lengths: the lengths of the examples of a pack. None: a row is one example.

    Returns:
        is_audio (M,): 1 at columns of audio, 0 at text and padding.
        order (M,): the rows in the order "columns of audio first, then the rest"; ``inverse`` (M,) is its inverse.
        num_audio: the number of columns of audio.
        columns (num_audio,): the index of each of them in the flattened columns (B * P).
        kept (N,): the rows whose logits are needed.
        supervised (N,): the index in the flattened columns (B * P) of the targets of these rows.
        example_lengths: as given, as a list.
    """
    is_audio_M = is_audio_BT.flatten().long()
    order_M, inverse_M = order_rows(is_audio_M)
    is_supervised_BP = (labels_BPK != IGNORED).any(dim=-1) & is_column_BP
    return {
        "is_audio": is_audio_M,
        "order": order_M,
        "inverse": inverse_M,
        "num_audio": int(is_audio_M.sum()),
        "columns": _list_true(is_column_BP),
        "kept": _list_true(keep_BT),
        "supervised": _list_true(is_supervised_BP),
        "example_lengths": None if example_lengths is None else list(example_lengths),
    }


def order_rows(is_audio_M: Tensor) -> tuple[Tensor, Tensor]:
    """Return the order "columns of audio first" of rows (M,), and its inverse (M,)."""
    order_M = is_audio_M.argsort(descending=True, stable=True)
    inverse_M = torch.empty_like(order_M)
    inverse_M[order_M] = torch.arange(len(order_M), device=order_M.device)
    return order_M, inverse_M


def _list_true(mask: Tensor) -> Tensor:
    return mask.flatten().nonzero().flatten()
