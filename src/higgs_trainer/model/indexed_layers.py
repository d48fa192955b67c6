"""A faster ``forward`` for transformers' decoder layers. The numbers are the same.

A layer has two norms before attention, two after it, and two FFNs: one of each for text and one for columns of audio.
transformers separates the positions and joins them again by a boolean mask, six times per layer, and each backward pass
first fills zeros for all positions. Here the order "columns first" comes with the batch (`build_layout`); a layer
moves rows by index and normalizes text and audio in one pass, and its attention rotates queries and keys without
copying their halves. Weights, their names and every call of a linear layer stay as in transformers, so PEFT,
checkpoints and gradient checkpointing work as before.

These layers have not been run on a GPU yet.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.higgs_audio_v2.modeling_higgs_audio_v2 import (
    HiggsAudioV2Attention,
    HiggsAudioV2DecoderLayer,
    HiggsAudioV2ForConditionalGeneration,
    HiggsAudioV2Model,
    HiggsAudioV2RMSNorm,
    eager_attention_forward,
)

from higgs_trainer.model.indexed_model import IndexedModel, add_row_order, keep_all_rows
from higgs_trainer.model.known_arguments import (
    CACHES,
    WITHOUT_EFFECT,
    check_known,
    check_modules,
    has_cache,
)
from higgs_trainer.model.row_order import RowOrder

NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "audio_input_layernorm",
    "audio_post_attention_layernorm",
)
LAYER_PARTS = frozenset({*NORMS, "self_attn", "mlp", "audio_mlp"})
ATTENTION_PARTS = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})

_LAYER = "The indexed decoder layer"
_ATTENTION = "The rotating attention"
_REMEDY = "model.indexed_layers: false"
_KNOWN_TO_ATTENTION = WITHOUT_EFFECT | {"example_lengths", "is_causal"}
_KNOWN_TO_LAYER = _KNOWN_TO_ATTENTION.union(CACHES)

logger = logging.getLogger(__name__)


class IndexedDecoderLayer(HiggsAudioV2DecoderLayer):
    """``HiggsAudioV2DecoderLayer`` that moves rows by index."""

    def forward(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        audio_token_mask: Tensor | None = None,
        row_order: RowOrder | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Compute hidden states (B, T, D) from hidden states (B, T, D).

        Without ``row_order``, every position is a column of audio and there is nothing to separate.

        Raises:
            VersionError: there is an argument that this layer does not know.
        """
        if row_order is None:
            states: Tensor = super().forward(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                audio_token_mask=audio_token_mask,
                **kwargs,
            )
            return states
        check_known(kwargs, _KNOWN_TO_LAYER, callee=_LAYER, remedy=_REMEDY)
        is_audio_M, num_audio = row_order.is_audio_M, row_order.num_audio
        normal_BTD = _normalize(hidden_states, self.input_layernorm, self.audio_input_layernorm, is_audio_M)
        attended_BTD, _ = self.self_attn(
            hidden_states=normal_BTD,
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            **kwargs,
        )
        hidden_BTD = _add(attended_BTD, hidden_states)

        normal_BTD = _normalize(
            hidden_BTD, self.post_attention_layernorm, self.audio_post_attention_layernorm, is_audio_M
        )
        rows_MD = row_order.put_audio_first(normal_BTD.flatten(0, 1))
        audio_AD, text_XD = rows_MD.split([num_audio, len(rows_MD) - num_audio])
        rows_MD = row_order.put_back(torch.cat([self.audio_mlp(audio_AD), self.mlp(text_XD)]))
        # A result in memory of its own: under FSDP2, an in-place addition to a view would drop a hook.
        return rows_MD.view_as(hidden_BTD) + hidden_BTD


class RotatingAttention(HiggsAudioV2Attention):
    """``HiggsAudioV2Attention`` that rotates queries and keys with one copy each."""

    def forward(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute attention (B, T, D) of hidden states (B, T, D), and its weights if the attention function does.

        Raises:
            VersionError: there is an argument that this module does not know.
        """
        if has_cache(kwargs):
            return super().forward(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                **kwargs,
            )
        check_known(kwargs, _KNOWN_TO_ATTENTION, callee=_ATTENTION, remedy=_REMEDY)
        cos_B1TE, sin_B1TE = (angles_BTE[:, None] for angles_BTE in position_embeddings)
        query_BHTE, key_BHTE, value_BHTE = (
            project(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attended_BTHE, weights = attend(
            self,
            _Rotate.apply(query_BHTE, cos_B1TE, sin_B1TE),
            _Rotate.apply(key_BHTE, cos_B1TE, sin_B1TE),
            value_BHTE,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(attended_BTHE.flatten(2)), weights


# transformers' `_no_split_modules` and launch files name the layers that FSDP wraps by their class.
IndexedDecoderLayer.__name__ = HiggsAudioV2DecoderLayer.__name__
RotatingAttention.__name__ = HiggsAudioV2Attention.__name__


def index_layers(model: nn.Module) -> None:
    """Give the decoder layers of a native model, with or without adapters, the faster ``forward``.

    A layer whose norms are wrapped by PEFT (``modules_to_save``) keeps transformers' ``forward``, and a warning is
    logged.

    Raises:
        VersionError: a layer has other modules than those that the faster ``forward`` calls.
    """
    layers = [module for module in model.modules() if isinstance(module, HiggsAudioV2DecoderLayer)]
    indexed = [layer for layer in layers if _has_plain_norms(layer)]
    for layer in indexed:
        check_modules(layer, LAYER_PARTS, callee=_LAYER, remedy=_REMEDY)
        check_modules(layer.self_attn, ATTENTION_PARTS, callee=_ATTENTION, remedy=_REMEDY)
    for layer in indexed:
        layer.__class__ = IndexedDecoderLayer
        if type(layer.self_attn) is HiggsAudioV2Attention:
            layer.self_attn.__class__ = RotatingAttention
    for module in model.modules() if indexed else ():
        if isinstance(module, HiggsAudioV2Model):
            _add_hook(module, add_row_order)
            if len(indexed) == len(layers):
                module.__class__ = IndexedModel
        if isinstance(module, HiggsAudioV2ForConditionalGeneration) and len(indexed) == len(layers):
            _add_hook(module, keep_all_rows)
    if len(indexed) < len(layers):
        logger.warning(
            "%d of %d layers keep transformers' forward, which is slower, because PEFT wraps their norms "
            "(adapter.modules_to_save)",
            len(layers) - len(indexed),
            len(layers),
        )


def _add_hook(module: nn.Module, hook: Callable[..., Any]) -> None:
    if hook not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(hook, with_kwargs=True)


def _has_plain_norms(layer: HiggsAudioV2DecoderLayer) -> bool:
    return all(type(getattr(layer, name)) is HiggsAudioV2RMSNorm for name in NORMS)


def _add(update: Tensor, residual: Tensor) -> Tensor:
    """Add in the memory of the update, unless autocast has made its dtype narrower than the residual's."""
    return update.add_(residual) if update.dtype == residual.dtype else residual + update


def _normalize(
    hidden_BTD: Tensor, text: HiggsAudioV2RMSNorm, audio: HiggsAudioV2RMSNorm, is_audio_M: Tensor
) -> Tensor:
    weights_2D = torch.stack([text.weight, audio.weight])
    normal_MD: Tensor = _DualRMSNorm.apply(
        hidden_BTD.flatten(0, 1), weights_2D, is_audio_M, text.variance_epsilon
    )
    return normal_MD.view_as(hidden_BTD)


class _Rotate(torch.autograd.Function):
    """Rotary position embedding of states (B, H, T, E) by cosines and sines (B, 1, T, E) with two equal halves."""

    @staticmethod
    def forward(ctx: Any, states_BHTE: Tensor, cos_B1TE: Tensor, sin_B1TE: Tensor) -> Tensor:
        ctx.save_for_backward(cos_B1TE, sin_B1TE)
        return _rotate(states_BHTE, cos_B1TE, sin_B1TE)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHTE: Tensor) -> tuple[Tensor, None, None]:
        cos_B1TE, sin_B1TE = ctx.saved_tensors
        return _rotate(grad_BHTE, cos_B1TE, -sin_B1TE), None, None


def _rotate(states_BHTE: Tensor, cos_B1TE: Tensor, sin_B1TE: Tensor) -> Tensor:
    """Rotate the halves (a, b) of the states to (a cos - b sin, b cos + a sin)."""
    a_BHTE, b_BHTE = states_BHTE.chunk(2, dim=-1)
    rotated_BHTE = states_BHTE * cos_B1TE
    rotated_a_BHTE, rotated_b_BHTE = rotated_BHTE.chunk(2, dim=-1)
    sin_a_B1TE, sin_b_B1TE = sin_B1TE.chunk(2, dim=-1)
    rotated_a_BHTE.addcmul_(b_BHTE, sin_a_B1TE, value=-1)
    rotated_b_BHTE.addcmul_(a_BHTE, sin_b_B1TE)
    return rotated_BHTE


class _DualRMSNorm(torch.autograd.Function):
    """RMSNorm of rows (M, D), each with one of two weights (2, D), in float32 or wider, as in transformers.

    The backward pass needs only the rows and one scale per row.
    """

    @staticmethod
    def forward(ctx: Any, rows_MD: Tensor, weights_2D: Tensor, which_M: Tensor, epsilon: float) -> Tensor:
        wide_MD = rows_MD.to(torch.promote_types(rows_MD.dtype, torch.float32))
        mean_square_M1 = (
            torch.linalg.vector_norm(wide_MD, dim=-1, keepdim=True).square_().div_(wide_MD.shape[-1])
        )
        scale_M1 = mean_square_M1.add_(epsilon).rsqrt_()
        ctx.save_for_backward(rows_MD, weights_2D, which_M, scale_M1)
        return (wide_MD * scale_M1).to(rows_MD.dtype).mul_(weights_2D.index_select(0, which_M))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MD: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        rows_MD, weights_2D, which_M, scale_M1 = ctx.saved_tensors
        dtypes, wide = (rows_MD.dtype, weights_2D.dtype), scale_M1.dtype
        rows_MD, weights_2D, grad_MD = rows_MD.to(wide), weights_2D.to(wide), grad_MD.to(wide)
        # Summed over rows, these give the gradient of the weights; summed over columns, that of the scale.
        slopes_MD = grad_MD * rows_MD
        grad_weights_2D = None
        if ctx.needs_input_grad[1]:
            membership_2M = torch.stack([which_M == 0, which_M == 1]) * scale_M1[:, 0]
            grad_weights_2D = (membership_2M @ slopes_MD).to(dtypes[1])
        along_M1 = (weights_2D @ slopes_MD.T).gather(0, which_M[None]).T
        pull_M1 = along_M1 * scale_M1**3 / rows_MD.shape[1]
        grad_rows_MD = torch.index_select(weights_2D, 0, which_M, out=slopes_MD).mul_(grad_MD).mul_(scale_M1)
        return grad_rows_MD.addcmul_(rows_MD, pull_M1, value=-1).to(dtypes[0]), grad_weights_2D, None, None
