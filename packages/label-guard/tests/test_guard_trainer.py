"""Layers 1 to 4 in a Trainer: each alone stops what passes it, what it stops reaches the loss, nothing is lost."""

import logging
from collections import UserDict
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BatchEncoding, BatchFeature, GPT2LMHeadModel, Trainer, default_data_collator

from label_guard import Contract, LabelGuardMixin, LabelLeakError
from tiny_guarded import (
    GuardedTrainer,
    IgnoringLM,
    collate_plain,
    collate_with_labels,
    losses_of,
    make_model,
    make_rows,
    make_trainer,
    next_token_loss,
)

ALL = frozenset({1, 2, 3, 4, 5})


class OwnLossTrainer(LabelGuardMixin, Trainer):
    """A trainer with a loss of its own, in the shape of the package's."""

    def compute_guarded_loss(
        self, model: nn.Module, model_inputs: Any, targets: Any, metadata: Any, num_items_in_batch: Any
    ) -> tuple[Tensor, Any]:
        outputs = model(**model_inputs)
        self.metadata_seen = metadata
        return next_token_loss(outputs, targets["labels"]), outputs


@dataclass
class DataclassBatch:
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


BATCH_TYPES = {
    "dict": dict,
    "UserDict": UserDict,
    "BatchEncoding": BatchEncoding,
    "BatchFeature": BatchFeature,
    "dataclass": lambda batch: DataclassBatch(**batch),
    "attributes": lambda batch: SimpleNamespace(**batch),
    "nested": lambda batch: {"inputs": batch, "targets": {"labels": batch.pop("labels")}},
}


def trainer_of(folder: Path, layers: set[int] | frozenset[int], **options: Any) -> Any:
    options = {"kind": OwnLossTrainer, "compute_loss_func": None, "guard_layers": layers} | options
    return make_trainer(folder, options.pop("model", None) or make_model(), **options)


CASES = [(layer, "dict") for layer in (1, 2, 4)] + [(3, "UserDict"), (5, "UserDict")]
CASES += [(2, kind) for kind in BATCH_TYPES if kind not in ("dict", "UserDict")]


@pytest.mark.parametrize(("layer", "batch_type"), CASES)
def test_each_layer_alone_stops_the_labels_of_a_collator(tmp_path: Path, layer: int, batch_type: str) -> None:
    def collate(rows: Any) -> Any:
        return BATCH_TYPES[batch_type](collate_with_labels(rows))

    def run(layers: Any, stage: str) -> Any:
        trainer = trainer_of(tmp_path, layers, data_collator=collate)
        return {
            "train": lambda: (trainer.train(), losses_of(trainer))[1],
            "evaluate": lambda: trainer.evaluate()["eval_loss"],
            "predict": lambda: trainer.predict(make_rows(4)).metrics["test_loss"],
        }[stage]()

    for stage in ("train", "evaluate", "predict"):
        if layer == 1 and stage != "train":
            continue  # training_step does not run there
        with pytest.raises(TypeError, match="unexpected keyword argument 'labels'"):
            run(set(), stage)
        assert run({layer}, stage) == run(ALL, stage)


@pytest.mark.parametrize("stage", ["train", "evaluate", "predict"])
def test_what_peft_adds_is_stopped_by_layer_5_only(tmp_path: Path, stage: str) -> None:
    def run(layers: Any) -> Any:
        adapter = LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"])
        trainer = trainer_of(tmp_path, layers, model=get_peft_model(make_model(), adapter))
        {
            "train": trainer.train,
            "evaluate": trainer.evaluate,
            "predict": lambda: trainer.predict(make_rows(4)),
        }[stage]()
        return trainer

    with pytest.raises(TypeError, match="unexpected keyword argument 'labels'"):
        run({1, 2, 3, 4})
    trainer = run(ALL)
    culprit = trainer.guard.leaks[-1]
    assert culprit.layer == 5
    assert culprit.injector.origin.startswith("PeftModelForCausalLM.forward (peft/peft_model.py:")


@pytest.mark.parametrize(
    ("layers", "smoothing", "accumulation"),
    [
        (ALL, 0.0, 1),
        (ALL, 0.1, 1),
        (ALL, 0.0, 2),
        (ALL, 0.1, 2),
        ({1}, 0.1, 1),
        ({2}, 0.1, 1),
        ({3}, 0.0, 1),
        ({4}, 0.0, 2),
    ],
)
def test_the_run_is_bit_identical_to_one_without_a_leak(
    tmp_path: Path, layers: Any, smoothing: float, accumulation: int
) -> None:
    """The stock Trainer on a base that takes the labels and ignores them, against the guarded one."""
    options = {
        "compute_loss_func": None if smoothing else next_token_loss,
        "label_smoothing_factor": smoothing,
        "gradient_accumulation_steps": accumulation,
        "compute_metrics": lambda prediction: {
            "sum": float(np.sum(prediction.predictions * prediction.label_ids.sum()))
        },
    }
    stock = make_trainer(tmp_path, make_model(IgnoringLM), kind=Trainer, **options)
    guarded = make_trainer(tmp_path, make_model(), guard_layers=layers, **options)
    stock.train(), guarded.train()
    assert losses_of(guarded) == losses_of(stock)
    assert guarded.evaluate()["eval_loss"] == stock.evaluate()["eval_loss"]
    assert guarded.evaluate()["eval_sum"] == stock.evaluate()["eval_sum"]
    expected, got = stock.predict(make_rows(4)), guarded.predict(make_rows(4))
    assert np.array_equal(got.predictions, expected.predictions)
    assert np.array_equal(got.label_ids, expected.label_ids)
    for (name, weight), (_, expected_weight) in zip(
        guarded.model.named_parameters(), stock.model.named_parameters(), strict=True
    ):
        assert torch.equal(weight, expected_weight), name


def test_a_model_with_labels_of_its_own_trains_as_in_the_stock_trainer(tmp_path: Path) -> None:
    def run(kind: type[Trainer]) -> Any:
        options = {"compute_loss_func": None, "gradient_accumulation_steps": 2}
        trainer = make_trainer(tmp_path, make_model(GPT2LMHeadModel), kind=kind, **options)
        trainer.train()
        return losses_of(trainer), trainer.evaluate()["eval_loss"]

    assert run(GuardedTrainer) == run(Trainer)


class KwargsWrapper(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **kwargs: Any) -> Any:
        return self.model(**kwargs)


@pytest.mark.parametrize("alias", ["labels", "label", "label_ids"])
def test_labels_reach_compute_loss_func_under_each_of_their_names(tmp_path: Path, alias: str) -> None:
    def collate(rows: Any) -> dict[str, Tensor]:
        batch = collate_with_labels(rows)
        return {alias if key == "labels" else key: value for key, value in batch.items()}

    def run(collator: Any) -> list[float]:
        trainer = make_trainer(tmp_path, make_model(), data_collator=collator, gradient_accumulation_steps=2)
        trainer.train()
        return losses_of(trainer)

    assert run(collate) == run(collate_with_labels)


def test_a_kwargs_wrapper_gets_no_count_and_keeps_its_columns(tmp_path: Path) -> None:
    rows = [row | {"label_ids": row["input_ids"]} for row in make_rows()]
    options = {"data_collator": default_data_collator, "train_dataset": rows, "remove_unused_columns": True}
    trainer = make_trainer(tmp_path, KwargsWrapper(make_model()), **options)
    trainer.train()
    assert trainer.model_accepts_loss_kwargs is False
    assert {leak.key for leak in trainer.guard.leaks} == {"labels"}
    assert "default_data_collator" in trainer.guard.leaks[0].injector.origin


def test_a_key_in_no_list_is_named_with_its_layer(tmp_path: Path) -> None:
    def collate(rows: Any) -> dict[str, Any]:
        return collate_with_labels(rows) | {"speed": 1}

    with pytest.raises(LabelLeakError, match=r"speed <- .*collator .*collate .*layer 1 \(training_step\)"):
        make_trainer(tmp_path, make_model(), data_collator=collate).train()


def test_metadata_and_expected_targets_travel_beside_the_inputs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def collate(rows: Any) -> dict[str, Any]:
        return collate_with_labels(rows) | {"utterance_ids": ["a", "b"]}

    trainer = trainer_of(tmp_path, ALL, data_collator=collate)
    trainer.guard_contract = Contract(
        "family",
        frozenset({"input_ids", "attention_mask"}),
        frozenset({"labels"}),
        frozenset({"utterance_ids"}),
    )
    trainer.guard_policy = "raise"
    trainer.train()
    assert trainer.metadata_seen == {"utterance_ids": ["a", "b"]}
    assert trainer.guard.leaks == []
    assert trainer.guard.ledger.layers[1].diverted == {"labels": 2}


def test_a_setting_that_comes_too_late_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_model())
    trainer.guard_policy = "raise"
    assert trainer.guard.policy == "raise"
    trainer.guard_policy = "divert"
    with pytest.raises(ValueError, match="changed after the guard was made"):
        trainer.train()


class TheirPredictionTrainer(Trainer):
    """As transformers' Seq2SeqTrainer: evaluation of its own."""

    def prediction_step(self, model: nn.Module, inputs: Any, *_: Any, **__: Any) -> Any:
        inputs = self._prepare_inputs(inputs)
        return torch.tensor(7.0), model(**inputs)["logits"].detach(), None


def test_the_prediction_step_of_an_existing_subclass_is_kept(tmp_path: Path) -> None:
    kind = type("Guarded", (LabelGuardMixin, TheirPredictionTrainer), {})
    assert make_trainer(tmp_path, make_model(), kind=kind).evaluate()["eval_loss"] == 7.0


def test_policy_raise_stops_before_the_first_call(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_model())
    trainer.guard_policy = "raise"
    with pytest.raises(LabelLeakError, match="labels <- already in the batch"):
        trainer.train()
    assert trainer.state.global_step == 0


class RebuildingTrainer(OwnLossTrainer):
    """Code between two layers that makes a plain dict of what it got."""

    def _prepare_inputs(self, inputs: Any) -> Any:
        return dict(super()._prepare_inputs(inputs))


def test_targets_are_not_lost_where_a_subclass_rebuilds_the_batch(tmp_path: Path) -> None:
    plain, rebuilt = trainer_of(tmp_path, ALL), trainer_of(tmp_path, ALL, kind=RebuildingTrainer)
    plain.train(), rebuilt.train()
    assert losses_of(plain) == losses_of(rebuilt)
    batch = collate_plain(make_rows(2))
    with pytest.raises(KeyError, match="labels"):
        rebuilt.compute_loss(rebuilt.model, batch)  # another batch does not get the labels of the last


class EditingTrainer(OwnLossTrainer):
    def training_step(self, model: nn.Module, inputs: Any, *args: Any) -> Tensor:
        return super().training_step(model, {**inputs, "labels": inputs["labels"] + 1}, *args)


class PreparingTrainer(OwnLossTrainer):
    def _prepare_inputs(self, inputs: Any) -> Any:
        return {**super()._prepare_inputs(inputs), "labels": inputs.targets["labels"] + 1}


def test_two_values_for_one_target_raise_and_both_sources_are_named(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, ALL, kind=PreparingTrainer)
    with pytest.raises(
        LabelLeakError, match=r"two different values for 'labels': one from .*collate_with_labels.*"
    ):
        trainer.train()


class TheirLossTrainer(Trainer):
    """A Trainer subclass as it stands in many repositories."""

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = next_token_loss(outputs, labels)
        return (loss, outputs) if return_outputs else loss


class GuardedTheirs(LabelGuardMixin, TheirLossTrainer):
    pass


def test_the_loss_of_an_existing_subclass_is_kept(tmp_path: Path) -> None:
    def run(kind: type[Trainer]) -> Any:
        trainer = make_trainer(tmp_path, make_model(), kind=kind, compute_loss_func=None)
        trainer.train()
        return losses_of(trainer)

    assert run(GuardedTheirs) == run(TheirLossTrainer)


def test_without_any_loss_the_step_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no loss: StrictLM returned none"):
        make_trainer(tmp_path, make_model(), compute_loss_func=None).train()


def test_prediction_without_labels_returns_logits_and_no_loss(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_model(), data_collator=collate_plain)
    output = trainer.predict(make_rows(4))
    assert output.label_ids is None
    assert "test_loss" not in output.metrics
    assert output.predictions.shape == (4, 7, 37)


def test_prediction_loss_only(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_model(), prediction_loss_only=True)
    assert trainer.predict(make_rows(4)).predictions is None
    assert trainer.evaluate()["eval_loss"] > 0


def test_a_second_trainer_on_the_same_model_guards_it_too(tmp_path: Path) -> None:
    model = make_model()
    first, second = trainer_of(tmp_path, ALL, model=model), trainer_of(tmp_path, ALL, model=model)
    first.train(), second.train(), first.evaluate()
    assert first.guard.alive(model)


def test_a_trainer_follows_a_model_that_was_made_anew(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, None, model_init=lambda: make_model())
    first = trainer.guard.base
    trainer.train()
    assert trainer.model is not first
    assert trainer.guard.alive(trainer.model)


def test_the_lines_that_users_search_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(tmp_path, make_model())
    with caplog.at_level(logging.DEBUG, "label_guard"):
        trainer.train()
        trainer.evaluate()
    lines = [
        (record.levelname, record.getMessage()) for record in caplog.records if record.name == "label_guard"
    ]
    found = [
        level
        for level, line in lines
        if line.startswith("Found 'labels' in training_step inputs - removing it!")
    ]
    removed = "Removing 'labels' from inputs before model forward pass"
    assert found == ["WARNING"]
    assert [level for level, line in lines if line.startswith(removed)] == ["DEBUG"]
    assert ("DEBUG", "Calling StrictLM with: ['input_ids', 'attention_mask']") in lines


@pytest.mark.parametrize("layers", [{1}, {2}, {3}, {4}, {5}, {1, 2, 3, 4, 5}])
def test_a_key_that_model_and_loss_share_reaches_both(tmp_path: Path, layers: set[int]) -> None:
    """As ``label_audio_ids`` of Boson's model: the contract lists it as an input and as a target."""
    seen: list[tuple[Tensor, Tensor]] = []

    class SharingTrainer(LabelGuardMixin, Trainer):
        guard_contract = Contract(
            "IgnoringLM",
            inputs=frozenset({"input_ids", "attention_mask", "labels"}),
            targets=frozenset({"labels"}),
        )

        def compute_guarded_loss(
            self, model: nn.Module, model_inputs: Any, targets: Any, metadata: Any, num_items_in_batch: Any
        ) -> tuple[Tensor, Any]:
            seen.append((model_inputs["labels"], targets["labels"]))
            outputs = model(**model_inputs)
            return next_token_loss(outputs, targets["labels"]), outputs

    trainer = make_trainer(tmp_path, make_model(IgnoringLM), kind=SharingTrainer, guard_layers=layers)
    trainer.train()
    assert len(seen) == 2
    assert all(torch.equal(given, target) for given, target in seen)
    assert not trainer.guard.leaks


@pytest.mark.parametrize("averages", [False, True])
def test_a_loss_averaged_over_devices_is_scaled_by_their_number_as_trainer_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, averages: bool
) -> None:
    """The count is then that of all ranks, and DDP's mean over ranks divides once more."""
    monkeypatch.setattr(GuardedTrainer, "_count_data_ranks", lambda self: 3)
    trainer = make_trainer(tmp_path, make_model())
    # Set late: transformers 4.46 resets it where there is one process.
    trainer.args.average_tokens_across_devices = averages
    batch = collate_with_labels(make_rows(2))
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(5))
    expected = next_token_loss(trainer.model(batch["input_ids"]), batch["labels"], 5)
    assert float(loss) == pytest.approx(float(expected) * (3 if averages else 1), rel=1e-6)
