"""What the collator returns, and the letters that name its axes.

    B  examples in a batch          K  codebooks (8)
    T  positions (text and audio)   C  codes in a codebook, stream tokens included
    F  frames, 25 a second          V  text vocabulary
    P  delayed columns of a clip    D  hidden size
    N  supervised positions         S  samples of a waveform, 24,000 a second

A tensor's name ends in its axes: ``audio_logits_NKC``. The keys of a batch keep Hugging Face's names, without letters.
Real shapes are checked once, here, before they reach the model.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""The label of a cell that the loss leaves out; the value that torch and transformers use."""


def check_batch(batch: Mapping[str, Tensor], *, num_codebooks: int) -> None:
    """Raise ``ValueError``, naming key, expected and actual, where the shapes of a native batch do not fit together.

    ``input_ids`` (B, T); ``labels``, ``logits_to_keep`` and, in a pack, ``position_ids`` likewise; ``audio_input_ids``
    and ``audio_labels`` (B, P, K); ``audio_input_ids_mask`` (B, P).
    """
    B, T = _shape(batch, "input_ids", 2)
    _expect(batch, "labels", (B, T))
    _expect(batch, "logits_to_keep", (B, T))
    if "position_ids" in batch:
        _expect(batch, "position_ids", (B, T))
    audio_B, P, K = _shape(batch, "audio_input_ids", 3)
    if (audio_B, K) != (B, num_codebooks):
        raise ValueError(
            f"audio_input_ids: expected ({B}, columns, {num_codebooks}), as input_ids has {B} rows and the model "
            f"{num_codebooks} codebooks, but got {(audio_B, P, K)}"
        )
    _expect(batch, "audio_labels", (B, P, K))
    _expect(batch, "audio_input_ids_mask", (B, P))
    check_pack(batch)


def check_pack(batch: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` where the examples of a pack would see each other without a word.

    transformers takes a row for a pack where ``position_ids`` (B, T) start again, but only if neither an
    ``attention_mask`` (B, T) nor a cache is there, be the mask all ones. (Left padding may start again where it ends.)
    """
    position_ids_BT = batch.get("position_ids")
    if position_ids_BT is None:
        return
    starts_again_BT = position_ids_BT[:, 1:] != position_ids_BT[:, :-1] + 1
    mask_BT = batch.get("attention_mask")
    if mask_BT is not None:
        starts_again_BT = starts_again_BT & mask_BT[:, 1:].bool() & mask_BT[:, :-1].bool()
    offender = "attention_mask" if mask_BT is not None else "use_cache" if batch.get("use_cache") else None
    if offender and starts_again_BT.any():
        raise ValueError(
            f"{offender} beside position_ids that start again, as in a pack: the model would not find its examples and "
            f"let them attend to each other; leave {offender} out"
        )


def _shape(batch: Mapping[str, Tensor], key: str, dimensions: int) -> torch.Size:
    shape = batch[key].shape
    if len(shape) != dimensions:
        raise ValueError(f"{key}: expected {dimensions} dimensions, but got shape {tuple(shape)}")
    return shape


def _expect(batch: Mapping[str, Tensor], key: str, expected: tuple[int, ...]) -> None:
    if tuple(batch[key].shape) != expected:
        raise ValueError(f"{key}: expected shape {expected}, but got {tuple(batch[key].shape)}")
