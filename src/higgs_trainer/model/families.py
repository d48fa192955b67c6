"""The model families: one row each. What a family takes, what the loss needs of it, what LoRA may adapt.

A third family is one more row and one adapter function, not a branch anywhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from higgs_trainer.batch import IGNORED
from higgs_trainer.errors import CheckpointError
from higgs_trainer.guard import Contract

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = (
    "gate_proj",
    "up_proj",
    "down_proj",
)  # in a native layer: of the text FFN and of the audio FFN
AUDIO_FEED_FORWARD = tuple(f"audio_mlp.{name}" for name in FEED_FORWARD)


@dataclass(frozen=True)
class Aligned:
    """Predictions beside what they should have been: ``audio_logits_NKC`` and ``audio_targets_NK``, row by row."""

    audio_logits_NKC: Tensor
    audio_targets_NK: Tensor


@dataclass(frozen=True)
class Family:
    """What the trainer must know of a model class.

    ``align`` puts the model's outputs beside the targets, shifted; ``lora_presets`` are module names for PEFT;
    ``has_text_logits`` says whether the ordinary forward returns logits over text.
    """

    name: str
    contract: Contract
    align: Callable[[Any, Mapping[str, Tensor], Mapping[str, Tensor]], Aligned]
    lora_presets: Mapping[str, tuple[str, ...]]
    has_text_logits: bool


def align_native(outputs: Any, model_inputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Aligned:
    """``HiggsAudioV2ForConditionalGeneration``: logits (N, K * C) at the kept positions, in order of batch and time.

    The hidden state at position p predicts the column at p + 1, so the targets are those of the columns that directly
    follow a kept position; where every supervised column follows one, both lists are the same length.
    """
    audio_labels_BPK = targets["audio_labels"]
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


HIGGS_AUDIO_V2 = Family(
    name="higgs_audio_v2",
    contract=Contract(
        name="higgs_audio_v2",
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
        metadata=frozenset({"utterance_ids", "durations_seconds"}),
    ),
    align=align_native,
    lora_presets={
        "attention": ATTENTION,
        "attention+audio_ffn": (*ATTENTION, *AUDIO_FEED_FORWARD),
        "all_linear": (*ATTENTION, *FEED_FORWARD),
    },
    has_text_logits=False,
)

FAMILIES: Mapping[str, Family] = {family.name: family for family in (HIGGS_AUDIO_V2,)}


def family_of(model: torch.nn.Module) -> Family:
    """The row for a model, found by its configuration's ``model_type``; ``CheckpointError`` where there is none."""
    model_type = str(getattr(getattr(model, "config", None), "model_type", None))
    if model_type not in FAMILIES:
        raise CheckpointError(
            f"model type {model_type!r} is not one that Higgs Trainer knows ({', '.join(FAMILIES)}); "
            "is name_or_path a Higgs Audio checkpoint?"
        )
    return FAMILIES[model_type]
