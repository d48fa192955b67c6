"""Predictions beside what they should have been, for each family's outputs and batches.

The hidden state at position p predicts what stands at p + 1. Which logits a model returns, and where, is what the
families differ in; behind these functions the loss sees rows of logits and rows of targets, and nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from higgs_trainer.tensors import IGNORED

Tensors = Mapping[str, Tensor]


class AlignedText(NamedTuple):
    """Logits and targets of M supervised text tokens."""

    logits_MV: Tensor
    targets_M: Tensor


@dataclass(frozen=True)
class Aligned:
    """Row by row, logits and targets over codes; and over text, where the model returns such logits and has labels."""

    audio_logits_NKC: Tensor
    audio_targets_NK: Tensor
    text: AlignedText | None = None


def count_native(model_inputs: Tensors, targets: Tensors) -> Tensor:
    """The supervised cells of each codebook, then the supervised text tokens: none, for this model (K + 1,)."""
    audio_labels_BPK = _need(targets, "audio_labels")
    cells_K = (audio_labels_BPK != IGNORED).sum(dim=(0, 1))
    return torch.cat([cells_K, cells_K.new_zeros(1)])


def align_native(outputs: Any, model_inputs: Tensors, targets: Tensors) -> Aligned:
    """``HiggsAudioV2ForConditionalGeneration``: logits (N, K * C) at the kept positions, in order of batch and time.

    The targets are those of the columns that directly follow a kept position; where every supervised column follows
    one, both lists are the same length.
    """
    audio_labels_BPK = _need(targets, "audio_labels")
    targets_MK = audio_labels_BPK[model_inputs["audio_input_ids_mask"].bool()]
    targets_NK = targets_MK[(targets_MK != IGNORED).any(dim=1)]
    logits = outputs.logits
    if logits.shape[:-1] != (len(targets_NK),):
        raise ValueError(
            f"logits_to_keep kept {tuple(logits.shape[:-1])} positions, but {len(targets_NK)} columns are supervised: "
            "the collator's logits_to_keep and audio_labels disagree"
        )
    K = targets_NK.shape[1]
    return Aligned(logits.reshape(len(targets_NK), K, logits.shape[-1] // K), targets_NK)


def count_boson(model_inputs: Tensors, targets: Tensors) -> Tensor:
    """The supervised cells of each codebook, then the supervised text tokens: (K + 1,)."""
    cells_K = (_need(targets, "label_audio_ids") != IGNORED).sum(dim=1)
    text_labels_BT = _text_labels(model_inputs, targets)
    if text_labels_BT is None:
        return torch.cat([cells_K, cells_K.new_zeros(1)])
    return torch.cat([cells_K, (text_labels_BT != IGNORED).sum()[None]])


def align_boson(outputs: Any, model_inputs: Tensors, targets: Tensors) -> Aligned:
    """``HiggsAudioModel`` of boson_multimodal, with the batches of its own collator.

    Its ``audio_logits`` (P, K, C) stand at the columns of all clips one after another, and its ``label_audio_ids``
    (K, P) at the same columns, unshifted: within each clip the logits of a column predict the next column.

    Raises ``ValueError`` where the first column of a clip is supervised: no logits exist that predict it.
    """
    targets_PK = _need(targets, "label_audio_ids").T
    supervised_P = (targets_PK != IGNORED).any(dim=1)
    starts = model_inputs["audio_out_ids_start"]
    if supervised_P[starts].any():
        raise ValueError(
            "label_audio_ids supervises the first column of a clip, which nothing predicts; put -100 there, as Boson's "
            "collator does where it adds the begin-of-stream column itself"
        )
    positions = supervised_P.nonzero()[:, 0]
    logits_NKC, targets_NK = outputs.audio_logits[positions - 1], targets_PK[positions]
    text_labels_BT = _text_labels(model_inputs, targets)
    if text_labels_BT is None:
        return Aligned(logits_NKC, targets_NK)
    expanded_BT = _expand_labels(outputs, model_inputs, text_labels_BT)
    following_BT = expanded_BT[:, 1:]
    supervised_BT = following_BT != IGNORED
    text = AlignedText(outputs.logits[:, :-1][supervised_BT], following_BT[supervised_BT])
    return Aligned(logits_NKC, targets_NK, text)


def _need(targets: Tensors, key: str) -> Tensor:
    if key not in targets:
        raise ValueError(f"the batch holds no {key}, so there is nothing to compute a loss from")
    return targets[key]


def _text_labels(model_inputs: Tensors, targets: Tensors) -> Tensor | None:
    """Boson's ``label_ids`` (B, T), or ``labels``; without the first token of a row, which nothing predicts."""
    given = [targets[key] for key in ("label_ids", "labels") if targets.get(key) is not None]
    if not given:
        return None
    if len(given) > 1 and not torch.equal(given[0], given[1]):
        raise ValueError("the batch holds label_ids and labels, and they differ; keep one of them")
    seen_BT = model_inputs["attention_mask"].bool()
    return given[0].masked_fill(~seen_BT | (seen_BT.cumsum(dim=1) == 1), IGNORED)


def _expand_labels(outputs: Any, model_inputs: Tensors, labels_BT: Tensor) -> Tensor:
    """Labels (B, T) -> (B, T') of the sequence in which the model has put the clips' columns where placeholders were.

    Boson's model does the same with ``label_ids`` if it is given them. It is not, so they are laid out here: its text
    tokens stand in both sequences in the same order.
    """
    is_audio_BT = outputs.audio_in_mask | outputs.audio_out_mask
    placeholders = outputs.expanded_input_ids[is_audio_BT].unique()
    is_text_BT = model_inputs["attention_mask"].bool() & ~torch.isin(model_inputs["input_ids"], placeholders)
    expanded_text_BT = outputs.attention_mask.bool() & ~is_audio_BT
    if not torch.equal(is_text_BT.sum(dim=1), expanded_text_BT.sum(dim=1)):
        raise ValueError(
            "the model's expanded sequence has other text tokens than input_ids: text labels cannot be laid out; "
            "does every <|AUDIO|> of the batch have its codes or features?"
        )
    if (labels_BT[~is_text_BT] != IGNORED).any():
        raise ValueError(
            "label_ids supervises an audio placeholder, which is no token of the expanded sequence; put -100 there "
            "(Boson's collator does with mask_audio_out_token_label=True)"
        )
    expanded_BT = labels_BT.new_full(expanded_text_BT.shape, IGNORED)
    expanded_BT[expanded_text_BT] = labels_BT[is_text_BT]
    return expanded_BT
