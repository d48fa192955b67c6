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

import torch
from torch import Tensor

IGNORED = -100
"""The label of a cell that the loss leaves out; the value that torch and transformers use."""


def check_batch(batch: Mapping[str, Tensor], *, num_codebooks: int) -> None:
    """Raise ``ValueError``, naming key, expected and actual, where the shapes of a native batch do not fit together.

    ``input_ids`` (B, T); ``labels`` and ``logits_to_keep`` likewise; ``audio_input_ids`` and ``audio_labels``
    (B, P, K); ``audio_input_ids_mask`` (B, P).
    """
    B, T = _shape(batch, "input_ids", 2)
    _expect(batch, "labels", (B, T))
    _expect(batch, "logits_to_keep", (B, T))
    audio_B, P, K = _shape(batch, "audio_input_ids", 3)
    if (audio_B, K) != (B, num_codebooks):
        raise ValueError(
            f"audio_input_ids: expected ({B}, columns, {num_codebooks}), as input_ids has {B} rows and the model "
            f"{num_codebooks} codebooks, but got {(audio_B, P, K)}"
        )
    _expect(batch, "audio_labels", (B, P, K))
    _expect(batch, "audio_input_ids_mask", (B, P))


def _shape(batch: Mapping[str, Tensor], key: str, dimensions: int) -> torch.Size:
    shape = batch[key].shape
    if len(shape) != dimensions:
        raise ValueError(f"{key}: expected {dimensions} dimensions, but got shape {tuple(shape)}")
    return shape


def _expect(batch: Mapping[str, Tensor], key: str, expected: tuple[int, ...]) -> None:
    if tuple(batch[key].shape) != expected:
        raise ValueError(f"{key}: expected shape {expected}, but got {tuple(batch[key].shape)}")
