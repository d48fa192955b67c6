"""The ledger: its cascade table, its verdict and its report."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2LMHeadModel, GPT2Model

from label_guard import Contract, LabelGuard, Leak
from label_guard.leak import KeySource
from tiny_guarded import TargetLossTrainer, gpt2_config, make_model, make_trainer


def test_a_leak_prints_key_source_layer_count_and_remedy() -> None:
    leak = Leak("labels", 5, KeySource("f (a.py:3)", "Stop it"), count=2)
    assert str(leak) == "labels <- f (a.py:3), at layer 5 (forward), 2 times. Stop it"
    leak.count, leak.source = 1, KeySource("f (a.py:3)")
    assert str(leak) == "labels <- f (a.py:3), at layer 5 (forward), once"


@pytest.mark.usefixtures("in_tests_folder")
def test_the_cascade_shows_what_each_layer_did(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_model(), kind=TargetLossTrainer)
    trainer.train()
    table = trainer.guard.ledger.cascade().splitlines()
    assert table[0].split() == ["layer", "calls", "keys", "seen", "diverted", "source"]
    first = table[2].split("  ")
    assert first[0] == "1 training_step"
    assert "input_ids, attention_mask, labels" in table[2]
    assert "labels x2" in table[2]
    assert "collate_with_labels (tiny_guarded.py:" in table[2]
    assert table[6].startswith("5 forward")
    assert "0 caught" in table[6]
    assert table[7] == "StrictLM.forward: input_ids, attention_mask"
    assert table[8] == "guarded: 2 leaks from 1 place stopped, none reached the model"


def test_the_cascade_of_an_observer_says_that_the_model_was_called(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_model())
    assert "StrictLM.forward: not called" in trainer.guard.ledger.cascade().splitlines()
    trainer.train()
    assert "StrictLM.forward: called" in trainer.guard.ledger.cascade().splitlines()


def test_the_cascade_has_no_rows_for_layers_that_are_off() -> None:
    def rows(*layers: int) -> list[str]:
        lines = LabelGuard(make_model(), layers=frozenset(layers)).ledger.cascade().splitlines()
        return [line[0] for line in lines[2:-2]]

    assert rows(5) == ["5"]
    assert rows(1, 3) == ["1", "3"]


def test_the_cascade_does_not_say_whether_a_model_was_called_that_is_not_watched() -> None:
    guard = LabelGuard(make_model(), layers=frozenset({1}))
    assert "StrictLM.forward: not watched" in guard.ledger.cascade().splitlines()


IDS = torch.arange(5).unsqueeze(0)


def test_the_verdict_of_a_clean_run_counts_what_was_called() -> None:
    model = make_model()
    guard = LabelGuard(model)
    assert guard.ledger.verdict() == (
        "nothing was watched: no forward that refuses a label was called; not called: StrictLM"
    )
    model(IDS)
    assert guard.ledger.verdict() == (
        "clean: 1 boundary watched (StrictLM), nothing but model inputs was put into a call"
    )
    assert guard.ledger.report()["leaks"] == []


class TakesAnyKey(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, **kwargs: Any) -> Any:
        return kwargs


def test_a_forward_that_takes_any_key_is_never_called_clean(caplog: pytest.LogCaptureFixture) -> None:
    model = TakesAnyKey()
    guard = LabelGuard(model)
    limit = "TakesAnyKey.forward, which takes any key (**kwargs)"
    assert f"Not watched: {limit}" in caplog.text
    for _ in range(2):
        assert model(input_ids=IDS, labels=IDS).keys() == {"input_ids", "labels"}
    (leak,) = guard.leaks
    assert (leak.key, leak.outcome, leak.count) == ("labels", "swallowed", 1)
    assert "not stopped, because TakesAnyKey.forward takes any key" in str(leak)
    verdict = guard.ledger.verdict()
    assert "clean" not in verdict
    assert verdict.endswith(f"'labels' reached TakesAnyKey.forward; not watched: {limit}")


def test_a_replaced_forward_that_calls_the_original_is_said_and_not_called_clean(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = make_model()
    original = model.forward

    def adds_labels(input_ids: Any) -> Any:
        return original(input_ids, labels=input_ids)

    model.forward = adds_labels
    guard = LabelGuard(model)
    hidden = "what test_a_replaced_forward_that_calls_the_original_is_said_and_not_called_clean.<locals>.adds_labels ("
    assert f"Not watched: {hidden}" in caplog.text
    with pytest.raises(TypeError, match="labels"):
        model(IDS)
    assert f"; not watched: {hidden}" in guard.ledger.verdict()


def test_without_layer_5_the_verdict_says_that_calls_were_not_watched() -> None:
    model = make_model()
    guard = LabelGuard(model, layers=frozenset({1}))
    model(IDS)
    assert guard.ledger.verdict().endswith("not watched: the calls of the model, because layer 5 is off")
    assert "clean" not in guard.ledger.verdict()


def test_policy_watch_changes_nothing_and_names_the_source() -> None:
    model = make_model()
    guard = LabelGuard(model, policy="watch")
    with pytest.raises(TypeError, match="unexpected keyword argument 'labels'"):
        model(IDS, labels=IDS)
    (leak,) = guard.leaks
    assert leak.outcome == "passed"
    assert "test_policy_watch_changes_nothing_and_names_the_source" in leak.source.name
    assert guard.ledger.verdict() == "not stopped: 1 leak from 1 place, 'labels' into StrictLM.forward"
    assert guard.pop_targets() == {}


@pytest.mark.skipif(
    "kwargs" not in inspect.signature(GPT2Model.forward).parameters,
    reason="GPT2Model of transformers 4.46 takes no other keys",
)
def test_policy_watch_leaves_labels_that_a_backbone_swallows() -> None:
    model = GPT2Model(gpt2_config())
    calls = []
    model.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    guard = LabelGuard(model, policy="watch")
    model(input_ids=IDS, labels=IDS)
    assert [leak.outcome for leak in guard.leaks] == ["swallowed"]
    guard = LabelGuard(model)
    model(input_ids=IDS, labels=IDS)
    assert [leak.outcome for leak in guard.leaks] == ["stopped"]
    assert guard.pop_targets().keys() == {"labels"}


def test_under_policy_watch_a_contract_stops_nothing() -> None:
    model = make_model(GPT2LMHeadModel)
    contract = Contract("short", frozenset({"input_ids"}), frozenset({"labels"}))
    guard = LabelGuard(model, contract, policy="watch")
    assert model(IDS, labels=IDS, attention_mask=torch.ones_like(IDS)).loss is not None
    assert [leak.key for leak in guard.leaks] == ["labels"]


def test_the_report_is_json_with_the_documented_keys(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_model(), kind=TargetLossTrainer)
    trainer.train()
    report = json.loads(json.dumps(trainer.guard.ledger.report()))
    assert set(report) == {
        "schema",
        "contract",
        "policy",
        "verdict",
        "layers",
        "model_call",
        "boundaries",
        "leaks",
    }
    assert report["schema"] == "label-guard/report/1"
    assert [layer["layer"] for layer in report["layers"]] == [1, 2, 3, 4, 5]
    first = report["layers"][0]
    assert set(first) == {"layer", "name", "on", "calls", "seen", "diverted", "tensors"}
    assert first["calls"] == 2
    assert first["seen"] == {"input_ids": 2, "attention_mask": 2, "labels": 2}
    assert first["diverted"] == {"labels": 2}
    assert first["tensors"]["labels"] == {"device": "cpu", "dtype": "int64", "shape": [2, 7]}
    assert set(report["model_call"]) == {"input_ids", "attention_mask"}
    (leak,) = report["leaks"]
    assert set(leak) == {"key", "layer", "source", "remedy", "count", "outcome", "model", "first_layer"}
    assert report["boundaries"] == [{"name": "StrictLM", "watched": True, "called": True, "not_watched": []}]
    assert (leak["key"], leak["layer"], leak["count"]) == ("labels", 1, 2)


def test_the_report_describes_the_values_of_the_first_batch() -> None:
    guard = LabelGuard(make_model())
    guard.filter(1, {"input_ids": 1})
    guard.filter(1, {"input_ids": "text"})
    assert guard.ledger.layers[1].tensors == {"input_ids": {"type": "int"}}


def test_the_summary_is_one_line_and_after_a_leak_the_table() -> None:
    model = make_model()
    guard = LabelGuard(model)
    model(IDS)
    assert guard.ledger.summary() == f"guard: {guard.ledger.verdict()}"
    model(IDS, labels=IDS)
    assert guard.ledger.summary() == guard.ledger.cascade()
