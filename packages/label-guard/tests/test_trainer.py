"""Layers 1 to 4 in a Trainer: each alone stops the leaks that pass it, and what it stops reaches the loss."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, default_data_collator

from label_guard import Contract, LabelGuardMixin, LabelLeakError
from tiny_guarded import (
    BATCH_TYPES,
    GuardedTrainer,
    IgnoringLM,
    KwargsWrapper,
    StrictLM,
    TargetLossTrainer,
    collate_plain,
    collate_with_labels,
    losses_of,
    make_model,
    make_rows,
    make_trainer,
    next_token_loss,
)

ALL = frozenset({1, 2, 3, 4, 5})


def trainer_of(folder: Path, layers: set[int] | frozenset[int], **options: Any) -> Any:
    options = {"kind": TargetLossTrainer, "compute_loss_func": None, "guard_layers": layers} | options
    return make_trainer(folder, options.pop("model", None) or make_model(), **options)


CASES = [(layer, "a dict") for layer in (1, 2, 4)] + [(3, "a UserDict"), (5, "a UserDict")]
CASES += [(2, kind) for kind in BATCH_TYPES if kind not in ("a dict", "a UserDict")]


@pytest.mark.parametrize(("layer", "batch_type"), CASES)
def test_each_layer_alone_stops_labels_from_the_collator(tmp_path: Path, layer: int, batch_type: str) -> None:
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
            # training_step does not run in evaluate and predict.
            continue
        with pytest.raises(TypeError, match="unexpected keyword argument 'labels'"):
            run(set(), stage)
        assert run({layer}, stage) == run(ALL, stage)


@pytest.mark.parametrize("stage", ["train", "evaluate", "predict"])
def test_only_layer_5_stops_the_labels_that_peft_adds(tmp_path: Path, stage: str) -> None:
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
    leak = trainer.guard.leaks[-1]
    assert leak.layer == 5
    assert leak.source.name.startswith("PeftModelForCausalLM.forward (peft/peft_model.py:")


@pytest.mark.parametrize(
    ("kind", "layers", "smoothing", "accumulation"),
    [
        (GuardedTrainer, ALL, 0.0, 1),
        (GuardedTrainer, ALL, 0.1, 2),
        (GuardedTrainer, {5}, 0.0, 2),
        (TargetLossTrainer, {1}, 0.0, 1),
        (TargetLossTrainer, {2}, 0.0, 1),
        (TargetLossTrainer, {3}, 0.0, 1),
        (TargetLossTrainer, {4}, 0.0, 1),
    ],
)
def test_a_run_with_labels_in_the_batch_is_bit_identical_to_one_that_ignores_them(
    tmp_path: Path, kind: type[Trainer], layers: Any, smoothing: float, accumulation: int
) -> None:
    """Compare with the stock Trainer on a model that takes the labels and ignores them."""
    options = {
        "compute_loss_func": None if smoothing else next_token_loss,
        "label_smoothing_factor": smoothing,
        "gradient_accumulation_steps": accumulation,
        "label_names": ["labels"],
        "compute_metrics": lambda prediction: {
            "sum": float(np.sum(prediction.predictions * prediction.label_ids.sum()))
        },
    }
    stock = make_trainer(tmp_path, make_model(IgnoringLM), kind=Trainer, **options)
    guarded = make_trainer(tmp_path, make_model(), kind=kind, guard_layers=layers, **options)
    stock.train(), guarded.train()
    assert losses_of(guarded) == losses_of(stock)
    if layers == {1}:
        # evaluate and predict do not run training_step.
        return
    assert guarded.evaluate()["eval_loss"] == stock.evaluate()["eval_loss"]
    assert guarded.evaluate()["eval_sum"] == stock.evaluate()["eval_sum"]
    expected, got = stock.predict(make_rows(4)), guarded.predict(make_rows(4))
    assert np.array_equal(got.predictions, expected.predictions)
    assert np.array_equal(got.label_ids, expected.label_ids)
    for (name, weight), (_, expected_weight) in zip(
        guarded.model.named_parameters(), stock.model.named_parameters(), strict=True
    ):
        assert torch.equal(weight, expected_weight), name


def test_a_model_that_takes_labels_trains_as_in_the_stock_trainer(tmp_path: Path) -> None:
    def run(kind: type[Trainer]) -> Any:
        options = {"compute_loss_func": None, "gradient_accumulation_steps": 2}
        trainer = make_trainer(tmp_path, make_model(GPT2LMHeadModel), kind=kind, **options)
        trainer.train()
        return losses_of(trainer), trainer.evaluate()["eval_loss"]

    assert run(GuardedTrainer) == run(Trainer)


@pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4.46 looks at its own models only")
@pytest.mark.parametrize("rows_in_a_batch", [1, 8])
def test_the_count_that_leaks_into_a_kwargs_wrapper_leaves_the_loss_scaled(
    tmp_path: Path, rows_in_a_batch: int
) -> None:
    """Trainer believes that the wrapper divides its loss by the count; the first step is right already."""

    class ReturnsALoss(StrictLM):
        def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
            outputs = super().forward(input_ids, attention_mask)
            return {"loss": next_token_loss(outputs, labels), "logits": outputs.logits}

    def run(kind: type[Trainer], wrap: Any) -> list[float]:
        options = {
            "compute_loss_func": None,
            "per_device_train_batch_size": rows_in_a_batch,
            "gradient_accumulation_steps": 8 // rows_in_a_batch,
            # Each row has equally many labels, so that the mean of means is the mean.
            "data_collator": lambda rows: {**collate_plain(rows), "labels": collate_plain(rows)["input_ids"]},
        }
        trainer = make_trainer(tmp_path, wrap(make_model(ReturnsALoss)), kind=kind, **options)
        trainer.train()
        return losses_of(trainer)

    assert run(GuardedTrainer, KwargsWrapper) == run(Trainer, lambda model: model)


def test_an_owner_gets_no_count_and_its_dataset_keeps_the_columns(tmp_path: Path) -> None:
    rows = [row | {"label_ids": row["input_ids"]} for row in make_rows()]
    options = {"data_collator": default_data_collator, "train_dataset": rows, "remove_unused_columns": True}
    trainer = trainer_of(tmp_path, ALL, model=KwargsWrapper(make_model()), **options)
    trainer.train()
    assert trainer.model_accepts_loss_kwargs is False
    assert {leak.key for leak in trainer.guard.leaks} == {"labels"}
    assert "default_data_collator" in trainer.guard.leaks[0].source.name


def test_the_error_for_an_unlisted_key_names_source_and_layer(tmp_path: Path) -> None:
    def collate(rows: Any) -> dict[str, Any]:
        return collate_with_labels(rows) | {"speed": 1}

    with pytest.raises(LabelLeakError, match=r"speed <- .*collator .*collate .*layer 1 \(training_step\)"):
        trainer_of(tmp_path, ALL, data_collator=collate).train()
    observer = make_trainer(tmp_path, make_model(), data_collator=collate)
    with pytest.raises(TypeError, match="unexpected keyword argument 'speed'"):
        observer.train()
    leak = next(leak for leak in observer.guard.leaks if leak.key == "speed")
    assert (leak.layer, leak.outcome, leak.first_layer) == (5, "passed", 1)
    assert "collate" in leak.source.name


def test_metadata_and_expected_targets_reach_the_loss_and_are_no_leak(tmp_path: Path) -> None:
    def collate(rows: Any) -> dict[str, Any]:
        return collate_with_labels(rows) | {"utterance_ids": ["a", "b"]}

    trainer = trainer_of(tmp_path, ALL, data_collator=collate)
    trainer.guard_contract = Contract(
        "listed",
        frozenset({"input_ids", "attention_mask"}),
        frozenset({"labels"}),
        frozenset({"utterance_ids"}),
    )
    trainer.guard_policy = "raise"
    trainer.train()
    assert trainer.metadata_seen == {"utterance_ids": ["a", "b"]}
    assert trainer.guard.leaks == []
    assert trainer.guard.ledger.layers[1].diverted == {"labels": 2}


def test_a_layer_that_is_off_counts_no_batch(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_model())
    trainer.guard_layers = frozenset({2, 5})
    trainer.train()
    assert [trainer.guard.ledger.layers[number].calls for number in (1, 2, 3)] == [0, 2, 0]


def test_changing_a_setting_after_the_guard_was_made_raises(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_model())
    trainer.guard_policy = "raise"
    assert trainer.guard.policy == "raise"
    trainer.guard_policy = "divert"
    with pytest.raises(ValueError, match="changed after the guard was made"):
        trainer.train()


class GeneratingTrainer(Trainer):
    """A Trainer subclass with its own ``prediction_step``, like transformers' ``Seq2SeqTrainer``."""

    def prediction_step(self, model: nn.Module, inputs: Any, *_: Any, **__: Any) -> Any:
        inputs = self._prepare_inputs(inputs)
        return torch.tensor(7.0), model(**inputs)["logits"].detach(), None


def test_the_prediction_step_of_a_trainer_subclass_is_kept(tmp_path: Path) -> None:
    kind = type("Guarded", (LabelGuardMixin, GeneratingTrainer), {})
    assert make_trainer(tmp_path, make_model(), kind=kind).evaluate()["eval_loss"] == 7.0


def test_policy_raise_raises_before_the_first_step(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, ALL)
    trainer.guard_policy = "raise"
    with pytest.raises(LabelLeakError, match="labels <- already in the batch"):
        trainer.train()
    assert trainer.state.global_step == 0


class RebuildingTrainer(TargetLossTrainer):
    """A subclass that makes a plain dict of the batch between two layers."""

    def _prepare_inputs(self, inputs: Any) -> Any:
        return dict(super()._prepare_inputs(inputs))


def test_targets_are_kept_when_a_subclass_rebuilds_the_batch(tmp_path: Path) -> None:
    plain, rebuilt = trainer_of(tmp_path, ALL), trainer_of(tmp_path, ALL, kind=RebuildingTrainer)
    plain.train(), rebuilt.train()
    assert losses_of(plain) == losses_of(rebuilt)
    batch = collate_plain(make_rows(2))
    # Another batch does not get the labels of the last one.
    with pytest.raises(KeyError, match="labels"):
        rebuilt.compute_loss(rebuilt.model, batch)


class EditingTrainer(TargetLossTrainer):
    def _prepare_inputs(self, inputs: Any) -> Any:
        return {**super()._prepare_inputs(inputs), "labels": inputs.targets["labels"] + 1}


def test_the_error_for_two_values_of_a_target_names_the_first_source(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, ALL, kind=EditingTrainer)
    with pytest.raises(
        LabelLeakError, match=r"two different values for 'labels': one from .*collate_with_labels.*"
    ):
        trainer.train()


class PoppingTrainer(Trainer):
    """A Trainer subclass that pops the labels in ``compute_loss``, as in many repositories."""

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = next_token_loss(outputs, labels)
        return (loss, outputs) if return_outputs else loss


class GuardedPoppingTrainer(LabelGuardMixin, PoppingTrainer):
    pass


def test_the_loss_of_a_trainer_subclass_is_kept(tmp_path: Path) -> None:
    def run(kind: type[Trainer]) -> Any:
        trainer = make_trainer(tmp_path, make_model(), kind=kind, compute_loss_func=None)
        trainer.train()
        return losses_of(trainer)

    assert run(GuardedPoppingTrainer) == run(PoppingTrainer)


def test_predicting_without_labels_returns_logits_and_no_loss(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_model(), data_collator=collate_plain)
    output = trainer.predict(make_rows(4))
    assert output.label_ids is None
    assert "test_loss" not in output.metrics
    assert output.predictions.shape == (4, 7, 37)


class CachingTrainer(TargetLossTrainer):
    """An owner whose outputs hold a cache, which is no tensor, under both of its names."""

    def compute_guarded_loss(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, Any]:
        loss, outputs = super().compute_guarded_loss(*args, **kwargs)
        return loss, {"logits": outputs["logits"], "past_key_values": object(), "cache": object()}


def test_the_cache_is_no_prediction_of_an_owner_if_the_configuration_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(GPT2Config, "keys_to_ignore_at_inference", raising=False)
    trainer = make_trainer(tmp_path, make_model(), kind=CachingTrainer)
    assert trainer.predict(make_rows(4)).predictions.shape == (4, 7, 37)


@pytest.mark.parametrize("kind", [GuardedTrainer, TargetLossTrainer])
def test_prediction_loss_only_returns_no_logits(tmp_path: Path, kind: type[Trainer]) -> None:
    trainer = make_trainer(
        tmp_path, make_model(), kind=kind, prediction_loss_only=True, label_names=["labels"]
    )
    assert trainer.predict(make_rows(4)).predictions is None
    assert trainer.evaluate()["eval_loss"] > 0


def test_two_trainers_can_guard_the_same_model_in_turn(tmp_path: Path) -> None:
    model = make_model()
    first, second = trainer_of(tmp_path, ALL, model=model), trainer_of(tmp_path, ALL, model=model)
    first.train(), second.train(), first.evaluate()
    assert first.guard.is_attached(model)


def test_a_model_made_by_model_init_is_guarded(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, None, model_init=lambda: make_model())
    first = trainer.guard.base
    trainer.train()
    assert trainer.model is not first
    assert trainer.guard.is_attached(trainer.model)


def test_the_log_lines_that_users_search_for_keep_words_and_levels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_of(tmp_path, ALL)
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
def test_a_key_that_is_both_an_input_and_a_target_reaches_both(tmp_path: Path, layers: set[int]) -> None:
    """The contract lists the key as an input and as a target."""
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


def test_the_log_line_of_the_call_can_use_another_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_of(tmp_path, ALL)
    trainer.guard_contract = replace(Contract.of(trainer.model), logged_as="ModelThatUsersKnow")
    with caplog.at_level(logging.DEBUG, "label_guard"):
        trainer.train()
    assert "Calling ModelThatUsersKnow with: ['input_ids', 'attention_mask']" in caplog.messages


# The two roles


def test_a_trainer_before_the_guard_is_an_error_when_the_class_is_made() -> None:
    with pytest.raises(
        TypeError, match=r"Wrong guards nothing.*Write class Wrong\(LabelGuardMixin, PoppingTrainer\)"
    ):
        type("Wrong", (PoppingTrainer, LabelGuardMixin), {})


def test_compute_loss_in_an_owner_is_an_error_when_the_class_is_made() -> None:
    body = {"compute_loss": PoppingTrainer.compute_loss}
    with pytest.raises(TypeError, match=r"Wrong\.compute_loss would get no labels"):
        type("Wrong", (TargetLossTrainer,), body)
    # An observer's own compute_loss gets what it got without the guard.
    type("Right", (GuardedTrainer,), body)


def test_a_mixin_before_the_guard_is_no_error() -> None:
    class Timing:
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            return super().training_step(*args, **kwargs)  # type: ignore[misc]

    type("Right", (Timing, GuardedTrainer), {})
    type("Right", (Timing, LabelGuardMixin, Trainer), {})


def test_a_guard_that_is_removed_stays_removed_in_a_trainer_and_its_verdict_says_so(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_model())
    trainer.train()
    assert trainer.guard.is_attached()
    trainer.guard.remove()
    trainer.train()
    assert not trainer.guard.is_attached()
    assert "not watched: the calls of the model since guard.remove()" in trainer.guard.ledger.verdict()


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_a_setting_that_is_changed_after_the_guard_was_made_is_an_error(tmp_path: Path, stage: str) -> None:
    trainer = make_trainer(tmp_path, make_model())
    assert trainer.guard.policy == "divert"
    trainer.guard_policy = "raise"
    with pytest.raises(ValueError, match="a setting of the guard was changed"):
        getattr(trainer, stage)()


def test_an_observer_records_the_keys_of_each_batch_at_the_layers_1_to_3(tmp_path: Path) -> None:
    class AddsAKey(GuardedTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(model, inputs | {"seen": None}, *args, **kwargs)

    trainer = make_trainer(tmp_path, make_model(), kind=AddsAKey, max_steps=3, gradient_accumulation_steps=2)
    trainer.train()
    records = trainer.guard.ledger.layers
    assert [records[layer].calls for layer in (1, 2, 3)] == [6, 6, 6]
    assert [records[layer].seen["seen"] for layer in (1, 2, 3)] == [0, 0, 6]
