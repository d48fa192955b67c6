"""Freezing by kind freezes exactly the parameters of that kind; the counts of trained parameters add up."""

import pytest
from transformers import HiggsAudioV2ForConditionalGeneration

from higgs_trainer.errors import RecipeError
from higgs_trainer.model.adapters import add_lora
from higgs_trainer.model.families import HIGGS_AUDIO_V2
from higgs_trainer.model.parameters import count_trainable, describe_trainable, freeze, freeze_text_head
from tiny import tiny_checkpoint

PARTS = {
    "text_embeddings": ".embed_tokens.",
    "audio_embeddings": ".embed_audio_tokens.",
    "attention": ".self_attn.",
    "text_ffn": ".mlp.",
    "audio_ffn": ".audio_mlp.",
    "norms": "norm.",
    "audio_head": "audio_lm_head.",
}
# The tiny model has neither.
ABSENT = {"text_head", "audio_tower"}


def test_every_parameter_is_of_one_kind():
    model = tiny_checkpoint().model
    for name, _ in model.named_parameters():
        assert (
            sum(not names.isdisjoint(name.split(".")) for names in HIGGS_AUDIO_V2.module_kinds.values()) == 1
        ), name
    assert set(HIGGS_AUDIO_V2.module_kinds) == set(PARTS) | ABSENT


@pytest.mark.parametrize("kind", PARTS)
def test_freezing_stops_the_kind_and_nothing_else(kind):
    model = tiny_checkpoint().model
    freeze(model, HIGGS_AUDIO_V2, [kind])
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (PARTS[kind] not in f".{name}"), name


def test_a_kind_that_matches_nothing_is_an_error_that_names_a_similar_one():
    with pytest.raises(RecipeError, match=r"'text_fnn' matches no parameter. Did you mean .text_ffn"):
        freeze(tiny_checkpoint().model, HIGGS_AUDIO_V2, ["text_fnn"])
    with pytest.raises(RecipeError, match=r"'audio_tower' matches no parameter. Did you mean .audio_"):
        freeze(tiny_checkpoint().model, HIGGS_AUDIO_V2, ["audio_tower"])


def test_something_is_left_to_train():
    with pytest.raises(RecipeError, match="nothing is left to train"):
        freeze(tiny_checkpoint().model, HIGGS_AUDIO_V2, list(PARTS))


def test_a_text_head_without_a_loss_is_not_trained():
    model = HiggsAudioV2ForConditionalGeneration(tiny_checkpoint().model.config, use_text_head=True)
    freeze_text_head(model, HIGGS_AUDIO_V2)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"text_lm_head.weight"}


def test_the_table_adds_up():
    model = tiny_checkpoint().model
    adapted = add_lora(model, HIGGS_AUDIO_V2, r=3, lora_alpha=5, use_dora=True)
    table = count_trainable(adapted)
    assert sum(total for _, total in table.values()) == sum(p.numel() for p in adapted.parameters())
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert sum(some for some, _ in table.values()) == trained
    # Two layers, rank 3, and one magnitude per row.
    assert table["q_proj"][0] == 2 * (3 * 32 + 3 * 32 + 32)
    line = describe_trainable(table)
    assert line.startswith(f"{trained:,} of ")
    assert "q_proj" in line
    assert "embed_tokens" not in line
