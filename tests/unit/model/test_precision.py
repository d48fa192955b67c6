"""The dtype in which weights are loaded, and trained parameters in float32."""

import copy
import json

import pytest
import torch
from torch import nn

from higgs_trainer.model.adapters import add_lora
from higgs_trainer.model.families import family_of
from higgs_trainer.model.indexed_layers import index_layers
from higgs_trainer.model.loaded_dtype import choose_dtype
from higgs_trainer.model.precision import keep_trained_in_float32, round_weights
from tiny import tiny_checkpoint

WHOLE = ["audio_lm_head", "embed_audio_tokens.embed_audio_tokens", "layers.1.audio_post_attention_layernorm"]


def build_adapted(*, indexed: bool = False, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    model = tiny_checkpoint().model.to(dtype)
    adapted = add_lora(model, family_of(model), r=2, lora_alpha=4, modules_to_save=WHOLE)
    if indexed:
        index_layers(adapted)
    return adapted


def build_inputs() -> dict[str, torch.Tensor]:
    ids = torch.arange(5)[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "float16"}, "float32"),
        ({"dtype": "float32"}, "float32"),
        ({"dtype": ["bfloat16"]}, "float32"),
        ({}, "float32"),
    ],
)
def test_auto_is_bfloat16_only_for_a_model_that_is_stored_in_it(tmp_path, config, expected):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert choose_dtype(tmp_path) == expected
    assert choose_dtype(tmp_path, "float16") == "float16"


def test_peft_leaves_modules_to_save_in_bfloat16_and_they_become_float32():
    adapted = build_adapted()
    assert {weight.dtype for weight in adapted.parameters() if weight.requires_grad} == {
        torch.bfloat16,
        torch.float32,
    }
    keep_trained_in_float32(adapted)
    dtypes = {(weight.requires_grad, weight.dtype) for weight in adapted.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_logits_are_those_of_the_narrow_model_to_its_rounding(indexed, autocast):
    narrow = build_adapted(indexed=indexed)
    # The same values in float32, to measure how much bfloat16 rounds.
    wide = copy.deepcopy(narrow).float()
    kept = copy.deepcopy(narrow)
    keep_trained_in_float32(kept)
    logits = {}
    for name, model in {"wide": wide, "narrow": narrow, "kept": kept}.items():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast and name != "wide"):
            logits[name] = model(**build_inputs(), use_cache=False).logits
    assert logits["kept"].dtype == logits["narrow"].dtype == torch.bfloat16
    errors = {name: (logits[name].float() - logits["wide"]).abs().max() for name in ("narrow", "kept")}
    assert errors["kept"] <= 1.5 * errors["narrow"] + 1e-3


def test_gradients_reach_every_trained_parameter_of_a_mixed_model():
    adapted = build_adapted()
    keep_trained_in_float32(adapted)
    audio = torch.randint(0, 13, (1, 4, 8))
    placeholder = adapted.config.audio_token_id
    ids = torch.tensor([[5, 6, *[placeholder] * 4]])
    logits = adapted(input_ids=ids, audio_input_ids=audio, use_cache=False).logits
    logits.float().square().mean().backward()
    without = [
        name
        for name, weight in adapted.named_parameters()
        if weight.requires_grad and (weight.grad is None or weight.grad.dtype != torch.float32)
    ]
    assert without == []


def test_a_fully_trained_model_becomes_float32_as_a_whole_and_computes_in_it():
    model = tiny_checkpoint().model.bfloat16()
    keep_trained_in_float32(model)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert model(**build_inputs(), use_cache=False).logits.dtype == torch.float32


def test_tied_parameters_stay_tied():
    model = tiny_checkpoint().model.bfloat16()
    embedding = model.get_submodule("model.embed_audio_tokens.embed_audio_tokens")
    model.audio_lm_head.weight = embedding.weight
    model.model.embed_tokens.requires_grad_(False)
    keep_trained_in_float32(model)
    assert model.audio_lm_head.weight is embedding.weight
    assert embedding.weight.dtype == torch.float32


def test_a_rounded_model_computes_in_the_narrow_dtype():
    model = tiny_checkpoint().model.bfloat16()
    model.model.embed_tokens.requires_grad_(False)
    keep_trained_in_float32(model)
    round_weights(model, "bfloat16")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert model(**build_inputs(), use_cache=False).logits.dtype == torch.bfloat16
