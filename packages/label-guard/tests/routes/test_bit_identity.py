"""Labels are diverted, not discarded: a guarded run with a leak equals, bit for bit, a run without one.

The reference is the stock Trainer on a model that takes the labels and ignores them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from catalogue import BATCHES, adalora, batch_of, lora
from torch import Tensor, nn
from transformers import Trainer, default_data_collator

from label_guard import LabelLeakError
from tiny_guarded import (
    GuardedTrainer,
    IgnoringLM,
    KwargsWrapper,
    StrictLM,
    TargetLossTrainer,
    collate_plain,
    collate_with_labels,
    make_model,
    make_rows,
    make_trainer,
    next_token_loss,
)


class StrictBase(StrictLM):
    def prepare_inputs_for_generation(self, *_: Any, **__: Any) -> None:
        """Do nothing; PEFT's task classes expect the method."""


class IgnoringBase(IgnoringLM):
    prepare_inputs_for_generation = StrictBase.prepare_inputs_for_generation

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Any = None,
        output_attentions: Any = None,
        output_hidden_states: Any = None,
        return_dict: Any = None,
    ) -> Any:
        return super().forward(input_ids, attention_mask)


def mask_labels(input_ids: Tensor) -> Tensor:
    """Make the same labels as ``collate_with_labels``."""
    return input_ids.masked_fill(input_ids % 5 == 0, -100)


def add_masked_labels(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return args, {**kwargs, "labels": mask_labels(kwargs["input_ids"])}


def hooked(model: nn.Module) -> nn.Module:
    model.register_forward_pre_hook(add_masked_labels, with_kwargs=True)
    return model


def batch_mean(outputs: Any, labels: Tensor | None, num_items_in_batch: Any = None) -> Tensor:
    return next_token_loss(outputs, labels)


class RebuildingInTraining(GuardedTrainer):
    def training_step(self, model: nn.Module, inputs: Any, *args: Any) -> Tensor:
        return super().training_step(model, {**inputs, "labels": mask_labels(inputs["input_ids"])}, *args)


@dataclass(frozen=True)
class Comparison:
    """A route, and how the reference differs where the stock Trainer cannot read the same batches."""

    name: str
    collate: Callable[[Any], Any] = collate_with_labels
    reference_collate: Callable[[Any], Any] = collate_with_labels
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model
    reference_wrap: Callable[[nn.Module], nn.Module] | None = None
    kind: type[Trainer] = GuardedTrainer
    loss: Callable[..., Tensor] = next_token_loss
    accumulation: int = 2
    rows: Callable[[int], Any] = make_rows
    evaluates: bool = True
    is_owner: bool = False


def rows_with_labels(count: int = 8) -> list[dict[str, Any]]:
    return [row | {"label_ids": row["input_ids"]} for row in make_rows(count)]


READ_BY_STOCK = ("a UserDict", "a BatchEncoding", "a BatchFeature")
IN_THE_CALL: dict[str, Any] = {
    "collate": collate_plain, "loss": batch_mean, "accumulation": 1, "evaluates": False
}  # fmt: skip
# What an observer leaves alone, because the stock Trainer cannot read it, or because the labels come too late for its
# loss: an owner hands them to its own.
BY_AN_OWNER: dict[str, Any] = {
    "kind": TargetLossTrainer, "loss": batch_mean, "accumulation": 1, "is_owner": True
}  # fmt: skip
CASES = [
    *(Comparison(f"batch is {name}", collate=batch_of(BATCHES[name])) for name in READ_BY_STOCK),
    *(Comparison(f"batch is {name}, owner", collate=batch_of(kind), **BY_AN_OWNER) for name, kind in BATCHES.items()),
    Comparison("collator", accumulation=4),
    Comparison(
        "default_data_collator",
        collate=default_data_collator,
        reference_collate=default_data_collator,
        rows=rows_with_labels,
    ),
    Comparison("PEFT CAUSAL_LM", wrap=lora("CAUSAL_LM")),
    Comparison("AdaLora", wrap=adalora),
    Comparison(
        "PEFT CAUSAL_LM in a wrapper",
        wrap=lambda model: KwargsWrapper(lora("CAUSAL_LM")(model)),
        reference_wrap=lora("CAUSAL_LM"),
    ),
    Comparison("PEFT CAUSAL_LM, owner", wrap=lora("CAUSAL_LM"), **BY_AN_OWNER),
    Comparison(
        "pre-hook on the base, owner",
        wrap=hooked,
        reference_wrap=lambda model: model,
        **BY_AN_OWNER | IN_THE_CALL,
    ),
    Comparison(
        "pre-hook on a wrapper, owner",
        wrap=lambda model: hooked(KwargsWrapper(model)),
        reference_wrap=lambda model: model,
        **BY_AN_OWNER | IN_THE_CALL,
    ),
    Comparison("a subclass rebuilds the batch", kind=RebuildingInTraining, **IN_THE_CALL),
]  # fmt: skip


@dataclass(frozen=True)
class TrainedRun:
    logs: list[Any]
    evaluated: list[float]
    weights: list[Tensor]


def train(folder: Path, case: Comparison, *, guarded: bool, smoothing: float) -> TrainedRun:
    base = make_model(StrictBase if guarded else IgnoringBase)
    wrap = case.wrap if guarded else case.reference_wrap or case.wrap
    trainer = make_trainer(
        folder,
        wrap(base),
        kind=case.kind if guarded else Trainer,
        data_collator=case.collate if guarded else case.reference_collate,
        compute_loss_func=None if smoothing or (guarded and case.is_owner) else case.loss,
        label_smoothing_factor=smoothing,
        label_names=["labels"],
        gradient_accumulation_steps=case.accumulation,
        train_dataset=case.rows(8),
        eval_dataset=case.rows(4),
        # Clipping is on, so that the gradient norm is logged, and too high to have an effect.
        max_grad_norm=1e9,
    )
    trainer.train()
    logs = [
        (entry["loss"], float(entry["grad_norm"])) for entry in trainer.state.log_history if "loss" in entry
    ]
    evaluated = [trainer.evaluate()["eval_loss"]] if case.evaluates else []
    return TrainedRun(logs, evaluated, [parameter.detach() for parameter in base.parameters()])


@pytest.mark.parametrize(
    ("case", "smoothing"),
    [
        pytest.param(case, smoothing, id=f"{case.name}, smoothing {smoothing}")
        for case in CASES
        for smoothing in ((0.0,) if case.is_owner else (0.0, 0.1))
    ],
)
def test_a_run_with_a_leak_equals_one_without(case: Comparison, smoothing: float, tmp_path: Path) -> None:
    expected = train(tmp_path, case, guarded=False, smoothing=smoothing)
    got = train(tmp_path, case, guarded=True, smoothing=smoothing)
    assert len(got.logs) == 2
    assert got.logs == expected.logs
    assert got.evaluated == expected.evaluated
    for weight, reference in zip(got.weights, expected.weights, strict=True):
        assert torch.equal(weight, reference)


@pytest.mark.skipif(
    transformers.__version__.startswith(("4.", "5.3.")),
    reason="the Trainer of 4.46 counts no targets without loss keywords; that of 5.3 counts otherwise",
)
def test_four_batches_of_one_row_give_the_loss_of_one_batch_of_four(tmp_path: Path) -> None:
    """The count of the whole step reaches the loss, so gradient accumulation changes only the rounding."""

    def run(batch: int, accumulation: int) -> list[float]:
        trainer = make_trainer(
            tmp_path,
            make_model(StrictBase),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
        )
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    assert run(1, 4) == pytest.approx(run(4, 1), rel=1e-6)


@pytest.mark.usefixtures("in_tests_folder")
def test_the_error_for_two_values_of_a_target_names_both_sources(tmp_path: Path) -> None:
    def collate(rows: Any) -> dict[str, Tensor]:
        batch = collate_plain(rows)
        return batch | {"labels": batch["input_ids"] + 1}

    model = hooked(make_model(StrictBase))
    trainer = make_trainer(tmp_path, model, kind=TargetLossTrainer, data_collator=collate)
    sources = r"one from .*collator .*collate .*, one from pre-hook add_masked_labels \(routes/test_bit_identity.py:"
    with pytest.raises(LabelLeakError, match=f"two different values for 'labels': {sources}"):
        trainer.train()
