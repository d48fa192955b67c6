"""transformers' decoder layer with another ``forward``, for training on a CPU: the same numbers in less time.

A layer has two norms before attention, two behind it and two FFNs, one for text and one for columns of audio.
transformers takes the positions apart and puts them together by a mask, six times a layer, and each backward first
fills zeros for all positions. Here a layer makes the order "columns first" once, moves rows by index, and normalises
text and audio in one pass. Weights, their names and every call of a linear layer are transformers' own, so PEFT,
checkpoints and gradient checkpointing find what they look for.

On a GPU this has not been run, and transformers' layers stay.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.higgs_audio_v2.modeling_higgs_audio_v2 import (
    HiggsAudioV2DecoderLayer,
    HiggsAudioV2RMSNorm,
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


# FSDP finds the layers to wrap by this name, in transformers' `_no_split_modules` and in launch files.
IndexedDecoderLayer.__name__ = HiggsAudioV2DecoderLayer.__name__


def index_layers(model: nn.Module) -> int:
    """Give the decoder layers of a native model, adapted or not, the ``forward`` above; returns how many have it now.

    A layer whose norms are not transformers' own (PEFT wraps what is in ``modules_to_save``) stays as it is.
    """
    layers = [module for module in model.modules() if isinstance(module, HiggsAudioV2DecoderLayer)]
    for layer in layers:
        if all(type(getattr(layer, name)) is HiggsAudioV2RMSNorm for name in NORMS):
            layer.__class__ = IndexedDecoderLayer
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
        along_M1 = (slopes_MD @ weights_2D.T).gather(1, which_M[:, None])
        pull_M1 = along_M1 * scale_M1**3 / rows_MD.shape[1]
        grad_rows_MD = weights_2D.index_select(0, which_M).mul_(grad_MD).mul_(scale_M1)
        return grad_rows_MD.addcmul_(rows_MD, pull_M1, value=-1).to(dtypes[0]), grad_weights_2D, None, None
