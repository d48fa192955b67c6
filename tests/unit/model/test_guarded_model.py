"""The label guard on transformers' Higgs Audio model, whose ``forward`` takes labels and computes its own loss."""

import inspect
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from higgs_trainer.model.families import HIGGS_AUDIO_V2
from label_guard import LabelGuard, LabelLeakError

K, CODES, AUDIO_ID = 3, 11, 20
CONTRACT = HIGGS_AUDIO_V2.contract


def make_native() -> nn.Module:
    from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

    config = HiggsAudioV2Config(
        vocab_size=29, hidden_size=12, intermediate_size=14, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=6, num_codebooks=K, codebook_size=CODES + 2, audio_token_id=AUDIO_ID,
        audio_delay_token_id=21, audio_bos_token_id=22, audio_stream_bos_id=CODES, audio_stream_eos_id=CODES + 1,
        bos_token_id=1, eos_token_id=2, pad_token_id=3, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    return HiggsAudioV2ForConditionalGeneration(config).eval()


def make_batch() -> dict[str, Any]:
    ids = torch.tensor([[4, 5, AUDIO_ID, AUDIO_ID, AUDIO_ID]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "audio_input_ids": torch.randint(CODES, (1, 3, K)),
        "audio_input_ids_mask": torch.ones(1, 3, dtype=torch.bool),
    }


def labels_of(batch: dict[str, Any]) -> dict[str, Any]:
    return {"labels": batch["input_ids"], "audio_labels": batch["audio_input_ids"]}


def record_calls(model: nn.Module) -> list[dict[str, Any]]:
    """Record the arguments of each call that reaches the model's own forward."""
    calls: list[dict[str, Any]] = []
    original = type(model).forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        return original(self, *args, **kwargs)

    forward.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    model.forward = forward.__get__(model)
    return calls


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
def test_its_labels_are_diverted_although_it_takes_them(task: str | None) -> None:
    base = make_native()
    calls = record_calls(base)
    model = get_peft_model(base, LoraConfig(task_type=task, target_modules=["q_proj"]))
    guard = LabelGuard(model, CONTRACT)
    batch = make_batch()
    outputs = model(**batch, **labels_of(batch))
    assert outputs.loss is None
    assert set(guard.pop_targets()) == {"labels", "audio_labels"}
    assert not {"labels", "audio_labels"} & set(calls[0])
    assert set(batch) <= set(calls[0])


def test_shift_labels_and_the_count_do_not_reach_it_through_its_kwargs() -> None:
    """``shift_labels`` in its ``**kwargs`` would silently replace the audio labels."""
    model = make_native()
    calls = record_calls(model)
    guard = LabelGuard(model, CONTRACT)
    model(**make_batch(), shift_labels=torch.ones(1), num_items_in_batch=3)
    assert set(guard.pop_targets()) == {"shift_labels", "num_items_in_batch"}
    assert set(calls[0]) == set(make_batch())


def test_an_unlisted_key_raises_and_does_not_disappear_in_its_kwargs() -> None:
    model = make_native()
    LabelGuard(model, CONTRACT)
    with pytest.raises(LabelLeakError, match="audio_out_ids"):
        model(**make_batch(), audio_out_ids=torch.ones(1))


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
def test_generate_gives_the_same_output_with_a_guard(task: str | None) -> None:
    def generate(guarded: bool) -> Any:
        model = get_peft_model(make_native(), LoraConfig(task_type=task, target_modules=["q_proj"]))
        guard = LabelGuard(model, CONTRACT) if guarded else None
        outputs = model.generate(**make_batch(), max_new_tokens=4, do_sample=False)
        assert guard is None or not [leak for leak in guard.leaks if leak.key != "labels"]
        return outputs

    torch.manual_seed(1)
    expected = generate(guarded=False)
    torch.manual_seed(1)
    got = generate(guarded=True)
    for name in ("audio_sequences", "sequences"):
        if getattr(expected, name, None) is not None:
            assert torch.equal(getattr(got, name), getattr(expected, name))


def test_the_log_line_that_users_search_for_keeps_the_name_of_the_model(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guard = LabelGuard(make_native(), CONTRACT)
    with caplog.at_level("DEBUG", "label_guard"):
        guard.verify(make_batch())
    assert caplog.messages[-1].startswith("Calling HiggsAudioModel with: ['input_ids', ")
