"""``packed_sdpa``: causal attention within each example of a pack.

transformers finds the examples of a pack by position ids that start again. With "sdpa" it then builds a dense mask
(T, T), so the cost is the square of the pack's length. Here each example is one causal call of torch's SDPA, and the
cost is the sum of the squares. Padded batches, and generation with a cache, take transformers' "sdpa" path.

Importing this module registers it with transformers; ``attn_implementation="packed_sdpa"`` selects it. On a GPU,
"flash_attention_2" has a kernel for variable lengths, and transformers finds the packs for it in the same way.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from higgs_trainer.errors import RecipeError, suggest_name
from higgs_trainer.model.known_arguments import WITHOUT_EFFECT, check_known, has_cache
from higgs_trainer.printable import make_line

PACKED_SDPA = "packed_sdpa"
_REMEDY = "model.attn_implementation: sdpa"
_KNOWN_TO_ATTENTION = WITHOUT_EFFECT | {"dropout", "is_causal", "scaling"}
# The length of the keys is that of the queries in a pack, so both offsets are 0.
_KNOWN_TO_MASK = frozenset({"config", "dtype", "kv_offset", "q_offset", "use_vmap"})


def mark_example_starts(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Tensor],
    attention_mask: Tensor | None,
    allow_is_causal_skip: bool,
    device: torch.device,
    **kwargs: Any,
) -> Tensor | None:
    """Return the mask of "packed_sdpa": for a pack, True where an example starts (B, T); otherwise the mask of "sdpa".

    transformers does not skip the mask of a row that it recognizes as a pack, and its mask function then says which
    position attends to which. An example starts where a position does not attend to the one before it.

    Raises:
        VersionError: there is an argument that this function does not know.
    """
    if allow_is_causal_skip or attention_mask is not None or q_length != kv_length or q_length == 1:
        return sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            mask_function=mask_function,
            attention_mask=attention_mask,
            allow_is_causal_skip=allow_is_causal_skip,
            device=device,
            **kwargs,
        )
    check_known(kwargs, _KNOWN_TO_MASK, callee=f"The mask function of {PACKED_SDPA}", remedy=_REMEDY)
    rows_B1 = torch.arange(batch_size, device=device)[:, None]
    positions_1T = torch.arange(q_length, device=device)[None, :]
    head = torch.zeros_like(rows_B1)
    sees_previous_BT = mask_function(rows_B1, head, positions_1T[:, 1:], positions_1T[:, :-1])
    return torch.cat([torch.ones_like(rows_B1, dtype=torch.bool), ~sees_previous_BT], dim=1)


def attend_by_example(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None = None,
    example_lengths: Sequence[int] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention (B, T, heads, head size) of query, key and value (B, heads, T, head size).

    Args:
        example_lengths: the lengths of the examples of a pack, which is one row. None: they are found by
            ``attention_mask``, the result of `mark_example_starts`.

    Raises:
        ValueError: positions start again, but transformers does not recognize a pack because there is an attention mask
            or a cache; the examples would attend to each other.
        VersionError: there is an argument that this function does not know.
    """
    if not has_cache(kwargs):
        check_known(
            kwargs, _KNOWN_TO_ATTENTION, callee=f"The attention function {PACKED_SDPA}", remedy=_REMEDY
        )
    if example_lengths is not None:
        return _attend_row(module, query, key, value, example_lengths, kwargs), None
    starts_BT = attention_mask if attention_mask is not None and attention_mask.dim() == 2 else None
    if starts_BT is None:
        if query.shape[2] == key.shape[2] > 1 and position_ids is not None:
            _check_no_pack(attention_mask, position_ids)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    rows = [
        _attend_row(module, query[[b]], key[[b]], value[[b]], _list_lengths(starts_T), kwargs)
        if len(starts_BT) > 1
        else _attend_row(module, query, key, value, _list_lengths(starts_T), kwargs)
        for b, starts_T in enumerate(starts_BT)
    ]
    return (rows[0] if len(rows) == 1 else torch.cat(rows)), None


def _list_lengths(starts_T: Tensor) -> list[int]:
    """List the lengths of the examples of a row from a mask that is True where they start."""
    starts = [*starts_T.nonzero().flatten().tolist(), len(starts_T)]
    return [end - start for start, end in pairwise(starts)]


def _attend_row(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    kwargs: dict[str, Any],
) -> Tensor:
    """Attend within each example of one row.

    The row is split, not sliced: the backward of a slice fills a tensor of full length.
    """
    parts = zip(*(states.split(list(lengths), dim=2) for states in (query, key, value)), strict=True)
    return torch.cat([sdpa_attention_forward(module, *part, None, **kwargs)[0] for part in parts], dim=1)


def _check_no_pack(mask_B1TT: Tensor | None, position_ids_BT: Tensor) -> None:
    starts_again_BT = position_ids_BT[:, 1:] != position_ids_BT[:, :-1] + 1
    if mask_B1TT is not None:
        # Left padding starts again too, at a position that does not attend to the one before it.
        sees_previous_BT = mask_B1TT[:, 0].diagonal(offset=-1, dim1=-2, dim2=-1)
        if sees_previous_BT.dtype != torch.bool:
            sees_previous_BT = sees_previous_BT == 0
        starts_again_BT = starts_again_BT & sees_previous_BT
    if starts_again_BT.any():
        raise ValueError(
            "position_ids start again within a row, as in a pack, but an attention mask or a cache is given too: the "
            "examples of the pack would attend to each other. Leave attention_mask out, and use_cache off"
        )


def check_attention(model: PreTrainedModel, name: str) -> None:
    """Check that an attention function exists, that the model can use it, and that its package is installed.

    Raises:
        RecipeError: it does not, or is not.
    """
    try:
        model.set_attn_implementation(name)
    except MemoryError:
        raise
    # transformers and its library of kernels raise exceptions of many kinds.
    except Exception as error:
        known = ALL_ATTENTION_FUNCTIONS.valid_keys()
        remedy = (
            f"Install its package, or write {PACKED_SDPA}." if name in known else suggest_name(name, known)
        )
        what = "cannot be used here" if name in known else "is unknown"
        reason = f" ({make_line(error)})" if name in known else ""
        raise RecipeError(f'model.attn_implementation: "{name}" {what}{reason}. {remedy}') from error


AttentionInterface.register(PACKED_SDPA, attend_by_example)
AttentionMaskInterface.register(PACKED_SDPA, mark_example_starts)
