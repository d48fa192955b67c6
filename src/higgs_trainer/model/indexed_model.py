"""A ``forward`` of transformers' decoder that follows the layout of a batch, so that it never waits for a GPU.

transformers' own finds placeholders, columns and the examples of a pack by boolean masks. The host must know how many
rows each of them selects before it can go on. `build_layout` counts them where the batch is made.

A call without a layout, such as generation, takes transformers' ``forward``.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.higgs_audio_v2.modeling_higgs_audio_v2 import HiggsAudioV2Model

from higgs_trainer.model.attention import PACKED_SDPA
from higgs_trainer.model.known_arguments import CACHES
from higgs_trainer.model.row_order import RowOrder

NOT_IN_A_LAYOUT = (*CACHES, "attention_mask", "inputs_embeds", "output_attentions", "output_hidden_states")
"""Arguments with which a call takes transformers' ``forward`` although it has a layout."""

_MODEL_ARGUMENTS = tuple(inspect.signature(HiggsAudioV2Model.forward).parameters)[1:]


class IndexedModel(HiggsAudioV2Model):
    """``HiggsAudioV2Model`` that follows the layout of a batch. All its layers must be indexed."""

    def forward(self, *args: Any, layout: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
        """Compute the hidden states (1, N, D) of the rows that the layout keeps; without a layout, of all positions."""
        if layout is None or not follows_layout(self, args, {**kwargs, "layout": layout}):
            return super().forward(*args, **kwargs)
        return self._forward_rows(layout, **kwargs)

    def _forward_rows(
        self,
        layout: Mapping[str, Any],
        *,
        input_ids: Tensor,
        audio_input_ids: Tensor,
        audio_input_ids_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        row_order = RowOrder.read(layout)
        text_X = input_ids.flatten().index_select(0, row_order.order_M[row_order.num_audio :])
        columns_AK = audio_input_ids.flatten(0, 1).index_select(0, layout["columns"])
        text_XD, audio_AD = self.embed_tokens(text_X), self.embed_audio_tokens(columns_AK)
        rows_MD = row_order.put_back(torch.cat([audio_AD.to(text_XD.dtype), text_XD]))
        hidden_BTD = rows_MD.view(*input_ids.shape, -1)
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        position_embeddings = self.rotary_emb(hidden_BTD, position_ids)
        for layer in self.layers:
            hidden_BTD = layer(
                hidden_BTD,
                position_embeddings=position_embeddings,
                row_order=row_order,
                example_lengths=layout["example_lengths"],
                **kwargs,
            )
        kept_ND = hidden_BTD.flatten(0, 1).index_select(0, layout["kept"])
        return BaseModelOutputWithPast(last_hidden_state=self.norm(kept_ND)[None])


# transformers finds by the name of a model's class which hidden states and attention weights it can return.
for _attribute in ("__module__", "__name__", "__qualname__"):
    setattr(IndexedModel, _attribute, getattr(HiggsAudioV2Model, _attribute))


def follows_layout(model: PreTrainedModel, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a call of a decoder, or of the model around it, follows the layout of its batch.

    "sdpa" cannot: it would need a mask for the examples of a pack.
    """
    layout = kwargs.get("layout")
    if layout is None or args or any(kwargs.get(name) is not None for name in NOT_IN_A_LAYOUT):
        return False
    implementation = model.config._attn_implementation
    return implementation == PACKED_SDPA or (implementation == "sdpa" and layout["example_lengths"] is None)


def add_row_order(
    model: HiggsAudioV2Model, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Compute the row order before a forward of the model without a layout, which passes it on to its layers.

    This is a forward pre-hook.
    """
    if isinstance(model, IndexedModel) and follows_layout(model, args, kwargs):
        return args, kwargs
    given = dict(zip(_MODEL_ARGUMENTS, args, strict=False)) | kwargs
    mask = model.get_placeholder_mask(
        given.get("input_ids"), given.get("inputs_embeds"), given.get("audio_input_ids_mask")
    )
    return args, kwargs if mask is None else {**kwargs, "row_order": RowOrder.of(mask)}


def keep_all_rows(
    model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Let the model around an `IndexedModel` keep every row, because that one has chosen them (a forward pre-hook)."""
    return args, {**kwargs, "logits_to_keep": 0} if follows_layout(model, args, kwargs) else kwargs
