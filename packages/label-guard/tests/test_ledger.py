"""The ledger: its cascade table, its verdict and its report."""

import json
from pathlib import Path

import pytest

from label_guard import LabelGuard, Leak
from label_guard.leak import KeySource
from tiny_guarded import TargetLossTrainer, make_model, make_trainer


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


def test_the_verdict_of_a_clean_run_is_clean() -> None:
    guard = LabelGuard(make_model())
    assert guard.ledger.verdict().startswith("clean")
    assert guard.ledger.report()["leaks"] == []


def test_the_report_is_json_with_the_documented_keys(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_model(), kind=TargetLossTrainer)
    trainer.train()
    report = json.loads(json.dumps(trainer.guard.ledger.report()))
    assert set(report) == {"schema", "contract", "policy", "verdict", "layers", "model_call", "leaks"}
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
    assert set(leak) == {"key", "layer", "source", "remedy", "count"}
    assert (leak["key"], leak["layer"], leak["count"]) == ("labels", 1, 2)


def test_the_report_describes_the_values_of_the_first_batch() -> None:
    guard = LabelGuard(make_model())
    guard.filter(1, {"input_ids": 1})
    guard.filter(1, {"input_ids": "text"})
    assert guard.ledger.layers[1].tensors == {"input_ids": {"type": "int"}}
