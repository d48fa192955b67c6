"""Layer 5, the base model's own forward: it sees every call, whatever added a key to it."""

import inspect
import logging
from collections.abc import Iterator
from types import MethodType
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from label_guard import Contract, LabelGuard, LabelLeakError
from tiny_guarded import SPEECH, VOCABULARY, SpeechModel, StrictLM, add_labels, make_model

IDS = torch.arange(5).unsqueeze(0)


def test_a_clean_call_gives_the_same_output() -> None:
    model = make_model().eval()
    expected = model(IDS).logits
    guard = LabelGuard(model)
    assert torch.equal(model(IDS).logits, expected)
    assert torch.equal(model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits, expected)
    assert guard.leaks == []


@pytest.mark.usefixtures("in_tests_folder")
@pytest.mark.parametrize("key", ["labels", "label_ids", "start_positions", "num_items_in_batch"])
def test_a_label_is_diverted_and_its_source_is_named(key: str) -> None:
    model = make_model()
    guard = LabelGuard(model)
    expected = model(IDS).logits
    assert torch.equal(model(IDS, **{key: IDS}).logits, expected)
    assert guard.pop_targets() == {key: IDS}
    assert guard.pop_targets() == {}
    (leak,) = guard.leaks
    assert (leak.key, leak.layer, leak.count) == (key, 5, 1)
    assert "test_a_label_is_diverted_and_its_source_is_named (test_forward.py:" in str(leak)


def test_peft_causal_lm_that_passes_labels_to_any_model_is_named() -> None:
    model = get_peft_model(make_model(), LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"]))
    with pytest.raises(TypeError, match="unexpected keyword argument 'labels'"):
        model(input_ids=IDS)
    guard = LabelGuard(model)
    for _ in range(3):
        model(input_ids=IDS)
    (leak,) = guard.leaks
    assert leak.count == 3
    assert leak.source.name.startswith("PeftModelForCausalLM.forward (peft/peft_model.py:")
    assert "task_type=None" in leak.source.remedy
    assert guard.pop_targets() == {}


def test_a_call_returns_its_own_labels_and_not_those_of_an_earlier_call() -> None:
    model = make_model()
    guard = LabelGuard(model)
    model(IDS, labels=IDS)
    model(IDS, labels=IDS + 1)
    assert torch.equal(guard.pop_targets()["labels"], IDS + 1)


@pytest.mark.parametrize("layers", [{5}, {1, 2, 3, 4}])
def test_without_layer_5_the_call_fails(layers: set[int]) -> None:
    model = make_model()
    LabelGuard(model, layers=frozenset(layers))
    if 5 in layers:
        model(IDS, labels=IDS)
    else:
        with pytest.raises(TypeError, match="labels"):
            model(IDS, labels=IDS)


def test_an_unlisted_key_that_is_no_label_is_named_and_python_raises(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = make_model()
    guard = LabelGuard(model)
    with pytest.raises(TypeError, match="unexpected keyword argument 'speed'"):
        model(IDS, speed=1.5)
    (leak,) = guard.leaks
    assert (leak.key, leak.outcome, leak.model) == ("speed", "passed", "StrictLM")
    assert leak.source.name.startswith("test_an_unlisted_key_that_is_no_label_is_named_and_python_raises (")
    assert "StrictLM.forward does not take 'speed' (speed <- test_an_unlisted" in caplog.text


def test_under_a_contract_an_unlisted_key_that_is_no_label_raises() -> None:
    model = SpeechModel()
    LabelGuard(model, SPEECH)
    match = r"speed <- test_under_a_contract_an_unlisted_key_that_is_no_label_raises .* does not list 'speed'"
    with pytest.raises(LabelLeakError, match=match):
        model(torch.ones(1), speed=1.5)


def test_an_unlisted_key_whose_value_is_none_is_dropped_and_reported() -> None:
    """PEFT's SEQ_2_SEQ_LM passes decoder_input_ids=None to a model that has no decoder."""
    model = make_model()
    guard = LabelGuard(model)
    model(IDS, decoder_input_ids=None)
    assert [leak.key for leak in guard.leaks] == ["decoder_input_ids"]


def test_policy_raise_raises_at_the_first_leak() -> None:
    model = make_model()
    guard = LabelGuard(model, policy="raise")
    with pytest.raises(LabelLeakError, match="labels <- ") as caught:
        model(IDS, labels=None)
    assert caught.value.leak is guard.leaks[0]


def test_a_label_passed_by_position_is_diverted() -> None:
    model = SpeechModel()
    guard = LabelGuard(model, SPEECH)
    assert model(torch.ones(1), torch.zeros(1), 3)[1:] == (None, 3)
    assert torch.equal(guard.pop_targets()["labels"], torch.zeros(1))


def test_more_arguments_than_positional_parameters_raise() -> None:
    model = SpeechModel()
    guard = LabelGuard(model, SPEECH)
    with pytest.raises(LabelLeakError, match="4 positional arguments, but has only 3"):
        model(*[torch.ones(1)] * 4)
    guard.remove()
    LabelGuard(model)
    with pytest.raises(TypeError, match="takes from 2 to 4 positional arguments but 5 were given"):
        model(*[torch.ones(1)] * 4)


class Special(nn.Module):
    """A model with parameters that can only be passed by position, and with ``*args``."""

    def forward(self, speech: Any, /, labels: Any = None, *more: Any, rate: int = 1) -> tuple[Any, ...]:
        return speech, labels, more, rate


def test_arguments_that_have_only_a_position_keep_it() -> None:
    model = Special()
    guard = LabelGuard(model, Contract("Special", frozenset({"speech", "rate"}), frozenset({"labels"})))
    assert model(1, 2, rate=3) == (1, None, (), 3)
    assert guard.pop_targets() == {"labels": 2}
    guard.remove()
    guard = LabelGuard(model)
    assert model(1, 2, 3, 4, rate=5) == (1, 2, (3, 4), 5)
    assert model(1, target_ids=7) == (1, None, (), 1)
    assert guard.pop_targets() == {"target_ids": 7}


def test_a_contract_can_keep_out_labels_that_the_model_takes() -> None:
    model = make_model(GPT2LMHeadModel)
    contract = Contract("short", frozenset({"input_ids"}), frozenset({"labels"}))
    guard = LabelGuard(model, contract)
    assert model(IDS, labels=IDS).loss is None
    assert "labels" in guard.pop_targets()
    assert model(IDS, use_cache=False, past_key_values=None, return_dict=True).logits.shape == (
        1,
        5,
        VOCABULARY,
    )


def test_generate_gives_the_same_output_under_a_contract() -> None:
    model = make_model(GPT2LMHeadModel).eval()
    expected = model.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0)
    guard = LabelGuard(
        model, Contract("short", frozenset({"input_ids"}), frozenset({"labels"})), policy="raise"
    )
    assert torch.equal(model.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0), expected)
    assert guard.leaks == []


@pytest.mark.usefixtures("in_tests_folder")
@pytest.mark.parametrize("order", ["before", "after"])
def test_a_hook_is_named_whether_it_was_registered_before_or_after_the_guard(order: str) -> None:
    model = make_model()
    if order == "before":
        model.register_forward_pre_hook(add_labels, with_kwargs=True)
    guard = LabelGuard(model)
    if order == "after":
        model.register_forward_pre_hook(add_labels, with_kwargs=True)
    model(input_ids=IDS)
    assert guard.leaks[0].source.name.startswith("pre-hook add_labels (tiny_guarded.py:")


def test_a_direct_call_of_forward_is_guarded() -> None:
    model = make_model()
    guard = LabelGuard(model)
    model.forward(IDS, labels=IDS)
    assert len(guard.leaks) == 1


def test_remove_restores_the_forward() -> None:
    model = make_model()
    guard = LabelGuard(model)
    assert guard.is_attached()
    assert guard.is_attached(model)
    guard.remove()
    assert not guard.is_attached()
    assert "forward" not in model.__dict__
    with pytest.raises(TypeError):
        model(IDS, labels=IDS)


def replaced(self: nn.Module, input_ids: Tensor, extra: int = 0) -> str:
    return f"replaced {extra}"


def test_a_forward_that_was_replaced_is_guarded_again(caplog: pytest.LogCaptureFixture) -> None:
    """Liger and TRL replace the forward of a model instance."""
    model = make_model()
    guard = LabelGuard(model)
    model.forward = MethodType(replaced, model)
    assert not guard.is_attached(model)
    with caplog.at_level(logging.WARNING, "label_guard"):
        guard.reattach(model)
    assert "StrictLM.forward was replaced" in caplog.text
    assert model(IDS, labels=IDS, extra=2) == "replaced 2"
    guard.remove()
    assert model(IDS) == "replaced 0"


def test_a_removed_guard_inside_another_wrapper_lets_everything_pass() -> None:
    """A tool that wrapped the guarded forward still calls it after ``remove``: it must then do nothing."""
    model = make_model()
    guard = LabelGuard(model)
    guarded = model.forward

    def timed(*args: Any, **kwargs: Any) -> Any:
        return guarded(*args, **kwargs)

    timed.__wrapped__ = guarded  # type: ignore[attr-defined]
    model.forward = timed
    guard.remove()
    assert model.forward is timed
    assert model(IDS).logits.shape[1] == IDS.shape[1]
    with pytest.raises(TypeError, match="unexpected keyword argument 'labels'"):
        model(IDS, labels=IDS)
    assert guard.leaks == []


def test_a_second_guard_replaces_the_first() -> None:
    model = make_model()
    first, second = LabelGuard(model), LabelGuard(model)
    model(IDS, labels=IDS)
    assert not first.is_attached()
    assert (first.leaks, len(second.leaks)) == ([], 1)
    second.remove()
    assert "forward" not in model.__dict__


def test_state_dict_signature_and_type_stay_the_same() -> None:
    model = make_model()
    keys, signature = list(model.state_dict()), inspect.signature(model.forward)
    LabelGuard(model)
    assert list(model.state_dict()) == keys
    assert inspect.signature(model.forward) == signature
    assert not hasattr(model.forward, "__wrapped__")
    assert isinstance(model, StrictLM)


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Reset the state that accelerate keeps for the whole process, before and after the test."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_accelerate")
def test_accelerate_does_not_remove_the_guard() -> None:
    model = make_model()
    guard = LabelGuard(model)
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    prepared = accelerator.prepare_model(model)
    assert guard.is_attached(prepared)
    prepared(IDS, labels=IDS)
    bare = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    assert guard.is_attached(bare)
    bare(IDS, labels=IDS)
    assert sum(leak.count for leak in guard.leaks) == 2


def test_the_guard_survives_merge_and_unload() -> None:
    model = get_peft_model(make_model(), LoraConfig(target_modules=["c_attn"]))
    guard = LabelGuard(model)
    merged = model.merge_and_unload()
    assert guard.is_attached(merged)
    merged(IDS, labels=IDS)
    assert len(guard.leaks) == 1


class BrokenContract(Contract):
    def split(self, batch: Any) -> Any:
        return super().split(batch)._replace(model_inputs=dict(batch))


def test_layer_5_checks_the_result_of_the_split(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model()
    LabelGuard(model, BrokenContract("broken", frozenset({"input_ids"}), frozenset({"labels"})))
    with pytest.raises(LabelLeakError, match=r"labels would have reached broken\.forward"):
        model(IDS, labels=IDS)
    assert "CRITICAL: Labels still found in kwargs after removal!" in caplog.text
    assert "Cleaned kwargs: ['input_ids', 'labels']" in caplog.text


def test_layer_4_checks_the_result_of_the_split(caplog: pytest.LogCaptureFixture) -> None:
    guard = LabelGuard(
        make_model(), BrokenContract("broken", frozenset({"input_ids"}), frozenset({"labels"}))
    )
    with pytest.raises(LabelLeakError, match=r"labels would have reached broken\.forward"):
        guard.verify(guard.filter(4, {"input_ids": IDS, "labels": IDS}))
    assert "Cleaned kwargs: ['input_ids', 'labels']" in caplog.text


def test_the_log_line_that_users_search_for_is_printed_once(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model()
    LabelGuard(model)
    for _ in range(3):
        model(IDS, labels=IDS)
    lines = [record for record in caplog.records if record.name == "label_guard"]
    assert [record.levelname for record in lines] == ["ERROR"]
    assert (
        lines[0]
        .getMessage()
        .startswith("FOUND LABELS IN FORWARD METHOD! Input keys: ['input_ids', 'labels']")
    )
