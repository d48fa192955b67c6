"""The letters that name the axes of a tensor, the ignore index, the checks of a batch's shapes, and of finite values.

    B  examples in a batch          K  codebooks (8)
    T  positions (text and audio)   C  codes in a codebook, stream tokens included
    F  frames, 25 a second          V  text vocabulary
    P  delayed columns of a clip    D  hidden size
    N  supervised positions         S  samples of a waveform, 24,000 a second

The name of a tensor ends in its axes: ``audio_logits_NKC``. The keys of a batch keep the names that Hugging Face gives
them, without letters.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""The label of a cell that the loss ignores, as in torch and transformers."""

FRAMES_PER_SECOND = 25
"""The frame rate of the codecs of Higgs Audio."""


def check_batch(batch: Mapping[str, Tensor], *, num_codebooks: int) -> None:
    """Check that the shapes of a batch fit together.

    ``input_ids`` is (B, T), and so are ``logits_to_keep`` and, in a pack, ``position_ids``. ``audio_input_ids`` and
    ``audio_labels`` are (B, P, K), ``audio_input_ids_mask`` is (B, P).

    Raises:
        ValueError: a shape does not fit; names the key, the expected and the actual shape.
    """
    B, T = _read_shape(batch, "input_ids", 2)
    _check_shape(batch, "logits_to_keep", (B, T))
    if "position_ids" in batch:
        _check_shape(batch, "position_ids", (B, T))
    audio_B, P, K = _read_shape(batch, "audio_input_ids", 3)
    if (audio_B, K) != (B, num_codebooks):
        raise ValueError(
            f"audio_input_ids: expected ({B}, columns, {num_codebooks}), as input_ids has {B} rows and the model "
            f"{num_codebooks} codebooks, but got {(audio_B, P, K)}"
        )
    _check_shape(batch, "audio_labels", (B, P, K))
    _check_shape(batch, "audio_input_ids_mask", (B, P))
    check_pack(batch)


def check_pack(batch: Mapping[str, Any]) -> None:
    """Check that the model can tell the examples of a pack from each other.

    transformers treats a row as a pack if its ``position_ids`` (B, T) start again at an example's start, but only if
    there is no ``attention_mask`` (B, T) and no cache; a mask of ones counts as a mask. With one of them the examples
    would silently attend to each other. A row that is padded on the left may start again where its padding ends.

    Raises:
        ValueError: positions start again, and there is an ``attention_mask`` or ``use_cache``.
    """
    position_ids_BT = batch.get("position_ids")
    if position_ids_BT is None:
        return
    mask_BT = batch.get("attention_mask")
    offender = "attention_mask" if mask_BT is not None else "use_cache" if batch.get("use_cache") else None
    if offender is None:
        return
    starts_again_BT = position_ids_BT[:, 1:] != position_ids_BT[:, :-1] + 1
    if mask_BT is not None:
        starts_again_BT = starts_again_BT & mask_BT[:, 1:].bool() & mask_BT[:, :-1].bool()
    if starts_again_BT.any():
        raise ValueError(
            f"{offender} is given with position_ids that start again, as in a pack: the model would let the examples "
            f"of the pack attend to each other. Leave {offender} out"
        )


def _read_shape(batch: Mapping[str, Tensor], key: str, dimensions: int) -> torch.Size:
    shape = batch[key].shape
    if len(shape) != dimensions:
        raise ValueError(f"{key}: expected {dimensions} dimensions, but got shape {tuple(shape)}")
    return shape


def _check_shape(batch: Mapping[str, Tensor], key: str, expected: tuple[int, ...]) -> None:
    if tuple(batch[key].shape) != expected:
        raise ValueError(f"{key}: expected shape {expected}, but got {tuple(batch[key].shape)}")


def list_not_finite(weights: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> list[str]:
    """List the names of tensors that contain NaN or infinity.

    The extremes of a tensor are infinite or NaN if one of its elements is. Computing them takes a thirtieth of the time
    of ``isfinite`` (on a CPU with AVX-512).
    """
    pairs = weights.items() if isinstance(weights, Mapping) else weights
    return [name for name, weight in pairs if not _is_finite(weight)]


def _is_finite(weight: Tensor) -> bool:
    if not weight.is_floating_point() or not weight.numel():
        return True
    # torch has no extremes of 8-bit floats.
    wide = weight.float() if weight.element_size() == 1 else weight
    return bool(torch.stack(torch.aminmax(wide)).isfinite().all())
