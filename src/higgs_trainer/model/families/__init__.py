"""The model families: one row each. What a family takes, what the loss needs of it, what LoRA may adapt.

A third family is one more row and one adapter function, not a branch anywhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from higgs_trainer.errors import CheckpointError
from higgs_trainer.model.families.alignment import (
    Aligned,
    Tensors,
    align_boson,
    align_native,
    count_boson,
    count_native,
)
from label_guard import Contract

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = (
    "gate_proj",
    "up_proj",
    "down_proj",
)  # in a layer: of the text FFN and of the audio FFN
AUDIO_FEED_FORWARD = tuple(f"audio_mlp.{name}" for name in FEED_FORWARD)
# Both families call the parts of a layer by the same names.
LORA_PRESETS = {
    "attention": ATTENTION,
    "attention+audio_ffn": (*ATTENTION, *AUDIO_FEED_FORWARD),
    "all_linear": (*ATTENTION, *FEED_FORWARD),
}


@dataclass(frozen=True)
class Family:
    """What the trainer must know of a model class.

    ``align`` puts the model's outputs beside the targets, shifted; ``count`` says how many targets a batch holds: the
    supervised cells of each codebook, then the supervised text tokens (K + 1,). ``lora_presets`` are module names for
    PEFT; ``has_text_logits`` says whether the ordinary forward returns logits over text.
    """

    name: str
    contract: Contract
    align: Callable[[Any, Tensors, Tensors], Aligned]
    count: Callable[[Tensors, Tensors], Tensor]
    lora_presets: Mapping[str, tuple[str, ...]]
    has_text_logits: bool


HIGGS_AUDIO_V2 = Family(
    name="higgs_audio_v2",
    contract=Contract(
        name="higgs_audio_v2",
        logged_as="HiggsAudioModel",
        inputs=frozenset(
            {
                "input_ids",
                "attention_mask",
                "position_ids",
                "audio_input_ids",
                "audio_input_ids_mask",
                "logits_to_keep",
            }
        ),
        targets=frozenset({"labels", "audio_labels"}),
        metadata=frozenset({"utterance_ids", "rewards", "num_tokens"}),
    ),
    align=align_native,
    count=count_native,
    lora_presets=LORA_PRESETS,
    has_text_logits=False,
)

HIGGS_AUDIO = Family(
    name="higgs_audio",
    contract=Contract(
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
        # label_audio_ids is both: the model names it, and the loss needs it.
        targets=frozenset({"labels", "label_ids", "label_audio_ids"}),
        metadata=frozenset({"utterance_ids", "rewards", "num_tokens"}),
    ),
    align=align_boson,
    count=count_boson,
    lora_presets=LORA_PRESETS,
    has_text_logits=True,
)

FAMILIES: Mapping[str, Family] = {family.name: family for family in (HIGGS_AUDIO_V2, HIGGS_AUDIO)}


def family_of(model: torch.nn.Module) -> Family:
    """The row for a model, found by its configuration's ``model_type``; ``CheckpointError`` where there is none."""
    model_type = str(getattr(getattr(model, "config", None), "model_type", None))
    if model_type not in FAMILIES:
        raise CheckpointError(
            f"model type {model_type!r} is not one that Higgs Trainer knows ({', '.join(FAMILIES)}); "
            "is name_or_path a Higgs Audio checkpoint?"
        )
    return FAMILIES[model_type]
