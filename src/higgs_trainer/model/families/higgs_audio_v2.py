"""Higgs Audio v2 in transformers: ``HiggsAudioV2ForConditionalGeneration``.

Its checkpoint layout, and that of Boson's class, is in ``layouts.py``.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from higgs_trainer.model.delay_pattern import apply_delay, build_targets, revert_delay
from higgs_trainer.model.families.dual_ffn import LORA_PRESETS, MODULE_KINDS
from higgs_trainer.model.families.family import (
    METADATA,
    Aligned,
    Family,
    SequenceFormat,
    StreamIds,
    Tensors,
    get_target,
)
from higgs_trainer.model.families.layouts import NATIVE_MODEL_TYPE
from higgs_trainer.model.prompt import encode_conversation, encode_prompt
from higgs_trainer.model.stream_rule import StreamTokensInPlace
from higgs_trainer.tensors import IGNORED
from label_guard import Contract

# `labels` is a target though our batches have none: labels that other code adds are diverted to the loss.
CONTRACT = Contract(
    name="higgs_audio_v2",
    logged_as="HiggsAudioModel",
    inputs=frozenset(
        {
            "input_ids",
            "attention_mask",
            "position_ids",
            "audio_input_ids",
            "audio_input_ids_mask",
            "layout",
            "logits_to_keep",
        }
    ),
    targets=frozenset({"labels", "audio_labels"}),
    metadata=METADATA,
)


def count(model_inputs: Tensors, targets: Tensors) -> Tensor:
    """Count the supervised cells of each codebook; the last count, of text tokens, is 0 (K + 1,)."""
    audio_labels_BPK = get_target(targets, "audio_labels")
    cells_K = (audio_labels_BPK != IGNORED).sum(dim=(0, 1))
    return torch.cat([cells_K, cells_K.new_zeros(1)])


def align(outputs: Any, model_inputs: Tensors, targets: Tensors) -> Aligned:
    """Align logits (N, K * C) at the kept positions, in order of batch and time, with the columns that follow.

    Raises:
        ValueError: the numbers of kept positions and of supervised columns differ.
    """
    targets_NK = _list_targets(get_target(targets, "audio_labels"), model_inputs)
    logits = outputs.logits
    if logits.shape[:-1].numel() != len(targets_NK):
        raise ValueError(
            f"logits_to_keep kept {logits.shape[:-1].numel()} positions, but {len(targets_NK)} columns are supervised: "
            "the collator's logits_to_keep and audio_labels disagree"
        )
    K = targets_NK.shape[1]
    return Aligned(logits.reshape(len(targets_NK), K, logits.shape[-1] // K), targets_NK)


def _list_targets(audio_labels_BPK: Tensor, model_inputs: Tensors) -> Tensor:
    """List the supervised columns (N, K) in order of batch and time."""
    layout: Any = model_inputs.get("layout")
    if layout is not None:
        return audio_labels_BPK.flatten(0, 1).index_select(0, layout["supervised"])
    # A batch of another collator.
    targets_PK = audio_labels_BPK[model_inputs["audio_input_ids_mask"].bool()]
    return targets_PK[(targets_PK != IGNORED).any(dim=1)]


def read_ids(config: Any) -> StreamIds:
    """Read the ids of a checkpoint from its configuration."""
    return StreamIds(
        audio_token=config.audio_token_id,
        delay_token=config.audio_delay_token_id,
        begin=config.audio_stream_bos_id,
        end=config.audio_stream_eos_id,
        num_codebooks=config.num_codebooks,
    )


def build_stream_rule(ids: StreamIds, done_token: int) -> StreamTokensInPlace:
    """Build the rule that begin of stream is before a clip, and that only codebook 0 ends it."""
    return StreamTokensInPlace(
        num_codebooks=ids.num_codebooks,
        begin_id=ids.begin,
        end_id=ids.end,
        delay_token=ids.delay_token,
        done_token=done_token,
    )


def import_model_class() -> type[PreTrainedModel]:
    """Import the class; transformers has it since version 5."""
    from transformers import HiggsAudioV2ForConditionalGeneration

    return HiggsAudioV2ForConditionalGeneration


HIGGS_AUDIO_V2 = Family(
    name="higgs_audio_v2",
    model_type=NATIVE_MODEL_TYPE,
    contract=CONTRACT,
    align=align,
    count=count,
    has_text_logits=False,
    module_kinds=MODULE_KINDS,
    lora_presets=LORA_PRESETS,
    sequence=SequenceFormat(
        read_ids=read_ids,
        encode_prompt=encode_prompt,
        encode_conversation=encode_conversation,
        apply_delay=apply_delay,
        build_targets=build_targets,
        revert_delay=revert_delay,
        build_stream_rule=build_stream_rule,
    ),
    import_model_class=import_model_class,
)
