"""Higgs Audio v2 in boson_multimodal: ``HiggsAudioModel``, with the batches of Boson's own collator.

Prompts and delay are the collator's, so this family has no sequence format. Its checkpoint layout, and that of
transformers' class, is in ``layouts.py``.
"""

from typing import Any

import torch
from torch import Tensor

from higgs_trainer.model.families.dual_ffn import LORA_PRESETS, MODULE_KINDS
from higgs_trainer.model.families.family import METADATA, Aligned, AlignedText, Family, Tensors, get_target
from higgs_trainer.model.families.layouts import BOSON_MODEL_TYPE
from higgs_trainer.tensors import IGNORED
from label_guard import Contract

# `label_audio_ids` is an input and a target: `forward` takes it, and the loss needs it.
CONTRACT = Contract(
    name="higgs_audio",
    inputs=frozenset(
        {
            "input_ids",
            "attention_mask",
            "audio_features",
            "audio_feature_attention_mask",
            "audio_out_ids",
            "audio_out_ids_start",
            "audio_out_ids_start_group_loc",
            "audio_in_ids",
            "audio_in_ids_start",
            "label_audio_ids",
            "reward",
        }
    ),
    targets=frozenset({"labels", "label_ids", "label_audio_ids"}),
    metadata=METADATA,
)


def count(model_inputs: Tensors, targets: Tensors) -> Tensor:
    """Count the supervised cells of each codebook, then the supervised text tokens (K + 1,)."""
    cells_K = (get_target(targets, "label_audio_ids") != IGNORED).sum(dim=1)
    text_labels_BT = _find_text_labels(model_inputs, targets)
    if text_labels_BT is None:
        return torch.cat([cells_K, cells_K.new_zeros(1)])
    return torch.cat([cells_K, (text_labels_BT != IGNORED).sum()[None]])


def align(outputs: Any, model_inputs: Tensors, targets: Tensors) -> Aligned:
    """Align ``audio_logits`` (P, K, C) with ``label_audio_ids`` (K, P), and logits over text with text labels.

    Both have the columns of all clips one after another, and the labels are not shifted: within a clip, the logits at
    a column predict the next column.

    Raises:
        ValueError: the first column of a clip is supervised, which no logits predict.
    """
    targets_PK = get_target(targets, "label_audio_ids").T
    supervised_P = (targets_PK != IGNORED).any(dim=1)
    starts = model_inputs["audio_out_ids_start"]
    if supervised_P[starts].any():
        raise ValueError(
            "label_audio_ids supervises the first column of a clip, which nothing predicts. Put -100 there, as Boson's "
            "collator does where it adds the begin-of-stream column itself"
        )
    positions = supervised_P.nonzero()[:, 0]
    logits_NKC, targets_NK = outputs.audio_logits[positions - 1], targets_PK[positions]
    text_labels_BT = _find_text_labels(model_inputs, targets)
    if text_labels_BT is None:
        return Aligned(logits_NKC, targets_NK)
    expanded_BT = _expand_labels(outputs, model_inputs, text_labels_BT)
    next_labels_BT = expanded_BT[:, 1:]
    supervised_BT = next_labels_BT != IGNORED
    text = AlignedText(outputs.logits[:, :-1][supervised_BT], next_labels_BT[supervised_BT])
    return Aligned(logits_NKC, targets_NK, text)


def _find_text_labels(model_inputs: Tensors, targets: Tensors) -> Tensor | None:
    """Return ``label_ids`` or ``labels`` (B, T). The first token of a row is ignored, since nothing predicts it."""
    given = [targets[key] for key in ("label_ids", "labels") if targets.get(key) is not None]
    if not given:
        return None
    if len(given) > 1 and not torch.equal(given[0], given[1]):
        raise ValueError("the batch has label_ids and labels, and they differ. Keep one of them")
    real_BT = model_inputs["attention_mask"].bool()
    return given[0].masked_fill(~real_BT | (real_BT.cumsum(dim=1) == 1), IGNORED)


def _expand_labels(outputs: Any, model_inputs: Tensors, labels_BT: Tensor) -> Tensor:
    """Expand labels (B, T) to (B, T'), the sequence in which the model has replaced placeholders by columns.

    The model would do the same with ``label_ids``, but the guard does not pass them to it. The text tokens have the
    same order in both sequences.
    """
    is_audio_BT = outputs.audio_in_mask | outputs.audio_out_mask
    placeholders = outputs.expanded_input_ids[is_audio_BT].unique()
    is_text_BT = model_inputs["attention_mask"].bool() & ~torch.isin(model_inputs["input_ids"], placeholders)
    expanded_text_BT = outputs.attention_mask.bool() & ~is_audio_BT
    if not torch.equal(is_text_BT.sum(dim=1), expanded_text_BT.sum(dim=1)):
        raise ValueError(
            "the model's expanded sequence has other text tokens than input_ids, so text labels cannot be expanded; "
            "does every <|AUDIO|> of the batch have its codes or features?"
        )
    if (labels_BT[~is_text_BT] != IGNORED).any():
        raise ValueError(
            "label_ids supervises an audio placeholder, which is no token of the expanded sequence. Put -100 there "
            "(Boson's collator does with mask_audio_out_token_label=True)"
        )
    expanded_BT = labels_BT.new_full(expanded_text_BT.shape, IGNORED)
    expanded_BT[expanded_text_BT] = labels_BT[is_text_BT]
    return expanded_BT


BOSON = Family(
    name="boson",
    model_type=BOSON_MODEL_TYPE,
    contract=CONTRACT,
    align=align,
    count=count,
    has_text_logits=True,
    module_kinds=MODULE_KINDS,
    lora_presets=LORA_PRESETS,
)
