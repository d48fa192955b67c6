"""A guarded model compiles into one graph; with a leak too, if it must."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from label_guard import Contract, LabelGuard
from label_guard.step import Step
from tiny_guarded import SPEECH, KwargsWrapper, SpeechModel, StrictLM, make_model


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


class Doubling(nn.Module):
    def forward(self, speech: Tensor) -> Tensor:
        return speech * 2


class AddsLabels(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(2, 2)])
        self.model = model

    def forward(self, speech: Tensor, labels: Any = None) -> Tensor:
        return self.model(
            speech=speech,
            labels=labels,
        )


def compiled(model: nn.Module, **options: Any) -> Any:
    return torch.compile(model, backend="eager", **options)


def test_a_guarded_model_compiles_without_graph_break_or_recompilation() -> None:
    model = SpeechModel()
    guard = LabelGuard(model, SPEECH)
    fast = compiled(model, fullgraph=True)
    for _ in range(1000):
        assert fast(speech=torch.ones(2), rate=2)[2] == 2
    assert guard.ledger.verdict().startswith("clean: 1 boundary watched (SpeechModel)")


def test_a_leak_into_a_compiled_model_is_diverted() -> None:
    model = SpeechModel()
    guard = LabelGuard(model, SPEECH)
    assert compiled(model)(speech=torch.ones(2), labels=torch.ones(2))[1] is None
    assert [leak.key for leak in guard.leaks] == ["labels"]
    assert torch.equal(guard.pop_targets()["labels"], torch.ones(2))


@pytest.mark.usefixtures("in_tests_folder")
@pytest.mark.parametrize("value", [None, 3.0])
def test_a_leak_in_one_graph_is_removed_and_its_source_is_named(value: float | None) -> None:
    model = AddsLabels(Doubling())
    guard = LabelGuard(model)
    fast = compiled(model, fullgraph=True)
    for number in range(3):
        labels = None if value is None else torch.full((2,), value + number)
        assert torch.equal(fast(torch.ones(2), labels=labels), torch.full((2,), 2.0))
        targets = guard.pop_targets()
        assert (targets == {}) if labels is None else torch.equal(targets["labels"], labels)
    (leak,) = guard.leaks
    assert leak.source.name.startswith("forward (test_compile.py:")


def test_the_labels_of_peft_are_removed_in_one_graph() -> None:
    class Small(StrictLM):
        def forward(self, input_ids: Any = None, attention_mask: Any = None, **_: Any) -> Any:
            return self.lm_head(self.transformer.wte(input_ids))

        forward.__annotations__.clear()

    base = Small(make_model().config)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"]))
    contract = Contract("Small", frozenset({"input_ids", "attention_mask"}), frozenset({"labels"}))
    guard = LabelGuard(model, contract)
    output = compiled(model, fullgraph=True)(input_ids=torch.arange(5).unsqueeze(0))
    assert output.shape[:2] == (1, 5)
    leak = next(leak for leak in guard.leaks if leak.key == "labels")
    assert "peft/peft_model.py:" in leak.source.name
    assert leak.source.remedy.endswith("make the adapter with task_type=None")


def test_a_leak_that_raises_in_one_graph_names_its_source() -> None:
    model = AddsLabels(Doubling())
    LabelGuard(model, policy="raise")
    with pytest.raises(Exception, match=r"labels <- forward \(.*test_compile.py:"):
        compiled(model, fullgraph=True)(torch.ones(2))


def test_a_forward_that_takes_any_key_stays_one_graph() -> None:
    class Open(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, **kwargs: Any) -> Tensor:
            return kwargs["speech"] * self.weight + kwargs["labels"]

    model = KwargsWrapper(Open())
    LabelGuard(model)
    fast = compiled(model, fullgraph=True)
    assert torch.equal(fast(speech=torch.ones(2), labels=torch.ones(2)), torch.full((2,), 2.0))


class TakesAnyKey(nn.Module):
    def forward(self, speech: Tensor, **kwargs: Tensor) -> Tensor:
        return speech * kwargs["speed"] + kwargs["labels"]


ANY_KEY = Contract("TakesAnyKey", frozenset({"speech"}), frozenset({"labels"}))


def test_watching_one_graph_with_a_contract_changes_nothing_and_names_every_key() -> None:
    model = TakesAnyKey()
    guard = LabelGuard(model, ANY_KEY, policy="watch")
    output = compiled(model, fullgraph=True)(
        speech=torch.ones(2), speed=torch.full((2,), 2.0), labels=torch.ones(2)
    )
    assert torch.equal(output, torch.full((2,), 3.0))
    assert [(leak.key, leak.outcome) for leak in guard.leaks] == [
        ("speed", "swallowed"),
        ("labels", "swallowed"),
    ]


@pytest.mark.usefixtures("in_tests_folder")
def test_an_unlisted_key_in_one_graph_raises_an_error_that_names_its_source_and_the_remedy() -> None:
    model = TakesAnyKey()
    LabelGuard(model, ANY_KEY)
    match = r"'speed', which comes from test_an_unlisted\w+ \(test_compile.py:.*list it in the contract"
    with pytest.raises(Exception, match=match):
        compiled(model, fullgraph=True)(speech=torch.ones(2), speed=torch.ones(2))


def test_a_leak_in_one_graph_says_at_which_layer_the_batch_first_held_the_key() -> None:
    model = SpeechModel()
    guard = LabelGuard(model, SPEECH)
    guard.step = Step(names={2: ("speech",), 3: ("speech", "labels")})
    compiled(model, fullgraph=True)(speech=torch.ones(2), labels=torch.ones(2))
    assert [(leak.key, leak.first_layer) for leak in guard.leaks] == [("labels", 3)]
