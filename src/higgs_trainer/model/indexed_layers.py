"""transformers' decoder layer with another ``forward``, for training on a CPU: the same numbers in less time.

A layer has two norms before attention, two behind it and two FFNs, one for text and one for columns of audio.
transformers takes the positions apart and puts them together by a mask, six times a layer, and each backward first
fills zeros for all positions. Here a layer makes the order "columns first" once, moves rows by index, and normalises
text and audio in one pass; its attention turns queries and keys by their positions with no copy of their halves.
Weights, their names and every call of a linear layer are transformers' own, so PEFT, checkpoints and gradient
checkpointing find what they look for.

On a GPU this has not been run, and transformers' layers stay.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.higgs_audio_v2.modeling_higgs_audio_v2 import (
    HiggsAudioV2Attention,
    HiggsAudioV2DecoderLayer,
    HiggsAudioV2RMSNorm,
    eager_attention_forward,
)

NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "audio_input_layernorm",
    "audio_post_attention_layernorm",
)


class IndexedDecoderLayer(HiggsAudioV2DecoderLayer):
    """``HiggsAudioV2DecoderLayer`` that moves rows by index."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        audio_token_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Hidden states (B, T, D) -> (B, T, D). ``audio_token_mask`` (B, T): True at columns of audio; without one,
        every position is a column, and transformers' own forward has nothing to take apart."""
        if audio_token_mask is None:
            whole: Tensor = super().forward(hidden_states, position_embeddings, attention_mask, **kwargs)
            return whole
        is_audio_M = audio_token_mask.flatten().long()
        order_M = is_audio_M.argsort(descending=True, stable=True)  # columns first
        back_M = order_M.argsort()
        num_audio = int(is_audio_M.sum())

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
        rows_MD = _Reorder.apply(normal_BTD.flatten(0, 1), order_M, back_M)
        audio_AD, text_XD = rows_MD.split([num_audio, len(rows_MD) - num_audio])
        rows_MD = torch.cat([self.audio_mlp(audio_AD), self.mlp(text_XD)])
        rows_MD = _add(_Reorder.apply(rows_MD, back_M, order_M), hidden_BTD.flatten(0, 1))
        return rows_MD.view_as(hidden_BTD)


class TurningAttention(HiggsAudioV2Attention):
    """``HiggsAudioV2Attention`` that turns queries and keys in one copy each."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states (B, T, D) -> (B, T, D) and, where the attention function returns them, its weights."""
        if past_key_values is not None:
            return super().forward(
                hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs
            )
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
            _Turn.apply(query_BHTE, cos_B1TE, sin_B1TE),
            _Turn.apply(key_BHTE, cos_B1TE, sin_B1TE),
            value_BHTE,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(attended_BTHE.flatten(2)), weights


# FSDP finds the layers to wrap by this name, in transformers' `_no_split_modules` and in launch files.
IndexedDecoderLayer.__name__ = HiggsAudioV2DecoderLayer.__name__
TurningAttention.__name__ = HiggsAudioV2Attention.__name__


def index_layers(model: nn.Module) -> int:
    """Give the decoder layers of a native model, adapted or not, the ``forward`` above; returns how many have it now.

    A layer whose norms are not transformers' own (PEFT wraps what is in ``modules_to_save``) stays as it is.
    """
    layers = [module for module in model.modules() if isinstance(module, HiggsAudioV2DecoderLayer)]
    for layer in layers:
        if all(type(getattr(layer, name)) is HiggsAudioV2RMSNorm for name in NORMS):
            layer.__class__ = IndexedDecoderLayer
            if type(layer.self_attn) is HiggsAudioV2Attention:
                layer.self_attn.__class__ = TurningAttention
    return sum(isinstance(layer, IndexedDecoderLayer) for layer in layers)


def _add(update: Tensor, residual: Tensor) -> Tensor:
    """Their sum, in the update's memory; not under autocast, where the update is of a narrower dtype."""
    return update.add_(residual) if update.dtype == residual.dtype else residual + update


def _normalize(
    hidden_BTD: Tensor, text: HiggsAudioV2RMSNorm, audio: HiggsAudioV2RMSNorm, is_audio_M: Tensor
) -> Tensor:
    weights_2D = torch.stack([text.weight, audio.weight])
    normal_MD: Tensor = _DualRMSNorm.apply(
        hidden_BTD.flatten(0, 1), weights_2D, is_audio_M, text.variance_epsilon
    )
    return normal_MD.view_as(hidden_BTD)


class _Reorder(torch.autograd.Function):
    """Rows (M, D) in another order, whose inverse is given: the backward is a gather too, with no zeros to add to."""

    @staticmethod
    def forward(ctx: Any, rows_MD: Tensor, order_M: Tensor, back_M: Tensor) -> Tensor:
        ctx.save_for_backward(back_M)
        return rows_MD.index_select(0, order_M)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MD: Tensor) -> tuple[Tensor, None, None]:
        (back_M,) = ctx.saved_tensors
        return grad_MD.index_select(0, back_M), None, None


class _Turn(torch.autograd.Function):
    """Rotary position embedding of states (B, H, T, E) by cosines and sines (B, 1, T, E), whose halves are alike."""

    @staticmethod
    def forward(ctx: Any, states_BHTE: Tensor, cos_B1TE: Tensor, sin_B1TE: Tensor) -> Tensor:
        ctx.save_for_backward(cos_B1TE, sin_B1TE)
        return _turn(states_BHTE, cos_B1TE, sin_B1TE)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHTE: Tensor) -> tuple[Tensor, None, None]:
        cos_B1TE, sin_B1TE = ctx.saved_tensors
        return _turn(grad_BHTE, cos_B1TE, -sin_B1TE), None, None


def _turn(states_BHTE: Tensor, cos_B1TE: Tensor, sin_B1TE: Tensor) -> Tensor:
    """(a, b), a state's halves, to (a cos - b sin, b cos + a sin)."""
    a_BHTE, b_BHTE = states_BHTE.chunk(2, dim=-1)
    turned_BHTE = states_BHTE * cos_B1TE
    turned_a_BHTE, turned_b_BHTE = turned_BHTE.chunk(2, dim=-1)
    sin_a_B1TE, sin_b_B1TE = sin_B1TE.chunk(2, dim=-1)
    turned_a_BHTE.addcmul_(b_BHTE, sin_a_B1TE, value=-1)
    turned_b_BHTE.addcmul_(a_BHTE, sin_b_B1TE)
    return turned_BHTE


class _DualRMSNorm(torch.autograd.Function):
    """RMSNorm of rows (M, D), each with one of two weights (2, D), in float32 at least, as transformers does it.

    Only the rows and a scale for each are kept for the backward.
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
        # Its sums over rows are the weights' gradient, those over columns that of the scale.
        slopes_MD = grad_MD * rows_MD
        grad_weights_2D = None
        if ctx.needs_input_grad[1]:
            membership_2M = torch.stack([which_M == 0, which_M == 1]) * scale_M1[:, 0]
            grad_weights_2D = (membership_2M @ slopes_MD).to(dtypes[1])
        along_M1 = (weights_2D @ slopes_MD.T).gather(0, which_M[None]).T
        pull_M1 = along_M1 * scale_M1**3 / rows_MD.shape[1]
        grad_rows_MD = torch.index_select(weights_2D, 0, which_M, out=slopes_MD).mul_(grad_MD).mul_(scale_M1)
        return grad_rows_MD.addcmul_(rows_MD, pull_M1, value=-1).to(dtypes[0]), grad_weights_2D, None, None
