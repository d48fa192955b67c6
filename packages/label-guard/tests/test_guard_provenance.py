"""The culprit: for each route by which a key comes into a call, the guard names the code that put it there."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, default_data_collator

from label_guard import Contract, LabelGuard, LabelGuardMixin, Leak
from tiny_guarded import (
    collate_plain,
    collate_with_labels,
    make_model,
    make_rows,
    make_trainer,
    next_token_loss,
)

HERE = "packages/label-guard/tests/test_guard_provenance.py:"
IDS = torch.arange(5).unsqueeze(0)


class OwnLossTrainer(LabelGuardMixin, Trainer):
    def compute_guarded_loss(
        self, model: nn.Module, model_inputs: Any, targets: Any, metadata: Any, num_items_in_batch: Any
    ) -> tuple[Tensor, Any]:
        outputs = model(**model_inputs)
        return next_token_loss(outputs, model_inputs["input_ids"]), outputs


class Wrapper(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **kwargs: Any) -> Any:
        return self.model(**kwargs)


def lone_leak(model: nn.Module, *args: Any, guarded: nn.Module | None = None, **kwargs: Any) -> Leak:
    guard = LabelGuard(guarded or model)
    model(*args, **kwargs)
    (leak,) = guard.leaks
    return leak


def first_leak(folder: Path, kind: type[Trainer] = OwnLossTrainer, **options: Any) -> Leak:
    options = {"compute_loss_func": None, "data_collator": collate_plain} | options
    trainer = make_trainer(
        folder, options.pop("model", None) or make_model(), kind=kind, max_steps=1, **options
    )
    trainer.train()
    return trainer.guard.leaks[0]


# In the call to the model


@pytest.mark.parametrize(
    ("task", "culprit"),
    [("CAUSAL_LM", "PeftModelForCausalLM"), ("SEQ_CLS", "PeftModelForSequenceClassification")],
)
def test_peft_task_classes(task: str, culprit: str) -> None:
    adapter = LoraConfig(task_type=TaskType[task], target_modules=["c_attn"])
    leak = lone_leak(get_peft_model(make_model(), adapter), input_ids=IDS, return_dict=None)
    assert leak.injector.origin.startswith(f"{culprit}.forward (peft/peft_model.py:")
    assert leak.injector.mend.endswith("make the adapter with task_type=None")


def test_a_wrapper_that_adds_labels_of_its_own() -> None:
    class Adding(Wrapper):
        def forward(self, **kwargs: Any) -> Any:
            kwargs["labels"] = kwargs["input_ids"]
            return super().forward(**kwargs)

    origin = lone_leak(Adding(make_model()), input_ids=IDS).injector.origin
    assert f"Adding.forward ({HERE}" in origin


def test_a_wrapper_that_only_passes_labels_on_is_not_blamed() -> None:
    origin = lone_leak(Wrapper(make_model()), input_ids=IDS, labels=IDS.clone()).injector.origin
    assert origin.startswith(f"test_a_wrapper_that_only_passes_labels_on_is_not_blamed ({HERE}")


def add_labels(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return args, {**kwargs, "labels": kwargs["input_ids"]}


def look_only(module: nn.Module, args: Any, kwargs: Any) -> None:
    assert kwargs


@pytest.mark.parametrize("where", ["base", "wrapper", "everywhere"])
def test_a_hook_is_named_among_others(where: str) -> None:
    model = Wrapper(make_model())
    place = {"base": model.model, "wrapper": model}.get(where)
    if place is None:
        removable = nn.modules.module.register_module_forward_pre_hook(lambda module, args: None)
        place = model
    else:
        removable = place.register_forward_pre_hook(look_only, with_kwargs=True)
    place.register_forward_pre_hook(add_labels, with_kwargs=True)
    try:
        leak = lone_leak(model, input_ids=IDS)
    finally:
        removable.remove()
    assert (
        leak.injector.origin
        == f"pre-hook add_labels ({HERE}{add_labels.__code__.co_firstlineno}) on {type(place).__name__}"
    )
    assert leak.injector.mend.startswith("Let the hook leave the keyword arguments")


def test_a_direct_call_of_forward() -> None:
    model = make_model()
    guard = LabelGuard(model)
    model.forward(IDS, labels=None)
    assert guard.leaks[0].injector.origin.startswith(f"test_a_direct_call_of_forward ({HERE}")


def test_by_position() -> None:
    class Old(nn.Module):
        """An old wrapper that hands its second argument on as labels, by position."""

        def __init__(self) -> None:
            super().__init__()
            self.model = LabelsSecond()

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.model(*args, **kwargs)

    class LabelsSecond(nn.Module):
        def forward(self, speech: Tensor, labels: Any = None) -> Tensor:
            return speech

    contract = Contract("LabelsSecond", frozenset({"speech"}), frozenset({"labels"}))
    model = Old()
    guard = LabelGuard(model, contract)
    first, second = torch.ones(1), torch.zeros(1)
    model(first, second)
    assert guard.leaks[0].injector.origin.startswith(f"test_by_position ({HERE}")


@pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4.46 looks at its own models only")
def test_the_count_that_the_stock_trainer_passes_into_a_wrapper(tmp_path: Path) -> None:
    model = Wrapper(make_model())
    guard = LabelGuard(model)
    make_trainer(tmp_path, model, kind=Trainer, max_steps=1).train()
    leak = next(leak for leak in guard.leaks if leak.key == "num_items_in_batch")
    assert "transformers/trainer.py:" in leak.injector.origin
    assert leak.injector.mend.endswith("set trainer.model_accepts_loss_kwargs = False")


# In the batch


def test_a_collator(tmp_path: Path) -> None:
    leak = first_leak(tmp_path, data_collator=collate_with_labels)
    assert leak.injector.origin.startswith(
        "already in the batch, from the collator collate_with_labels (packages/label-guard/tests/tiny_guarded.py:"
    )
    assert leak.injector.mend.startswith("Let the collator leave it out")


def test_a_column_of_the_dataset(tmp_path: Path) -> None:
    rows = [row | {"labels": row["input_ids"]} for row in make_rows()]
    leak = first_leak(tmp_path, train_dataset=rows)
    assert leak.injector.origin == "already in the batch, from the dataset's column 'labels'"
    assert leak.injector.mend.startswith("Remove the column from the dataset")


def test_the_default_collator_renames_a_column(tmp_path: Path) -> None:
    rows = [row | {"label_ids": row["input_ids"]} for row in make_rows()]
    leak = first_leak(tmp_path, train_dataset=rows, data_collator=default_data_collator)
    assert (
        "from the collator default_data_collator (transformers/data/data_collator.py:" in leak.injector.origin
    )
    assert leak.injector.origin.endswith("from the dataset's column 'label_ids'")
    assert leak.injector.mend.startswith("It renames label and label_ids to labels")


class Stream(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(make_rows())


def test_a_stream_cannot_be_told_from_its_collator(tmp_path: Path) -> None:
    leak = first_leak(tmp_path, train_dataset=Stream(), data_collator=collate_with_labels)
    assert "from the dataset or the collator collate_with_labels" in leak.injector.origin


class EditsInEvaluation(OwnLossTrainer):
    def _prepare_inputs(self, inputs: Any) -> Any:
        return {**super()._prepare_inputs(inputs), "labels": inputs["input_ids"]}


def test_in_evaluation_a_subclass_is_told_from_the_collator(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_model(), kind=EditsInEvaluation, data_collator=collate_plain)
    trainer.evaluate()
    assert trainer.guard.leaks[0].injector.origin.startswith(f"EditsInEvaluation._prepare_inputs ({HERE}")


def test_in_evaluation_the_evaluated_dataset_is_looked_at(tmp_path: Path) -> None:
    rows = [row | {"labels": row["input_ids"]} for row in make_rows(4)]
    trainer = make_trainer(
        tmp_path, make_model(), kind=OwnLossTrainer, data_collator=collate_plain, eval_dataset=rows
    )
    trainer.evaluate()
    assert (
        trainer.guard.leaks[0].injector.origin == "already in the batch, from the dataset's column 'labels'"
    )


# On the way through the trainer


class RebuildsTheBatch(OwnLossTrainer):
    def training_step(self, model: nn.Module, inputs: Any, *args: Any) -> Tensor:
        return super().training_step(model, {**inputs, "labels": inputs["input_ids"]}, *args)


class RebuildsInALocal(OwnLossTrainer):
    def training_step(self, model: nn.Module, inputs: Any, *args: Any) -> Tensor:
        inputs = {**inputs, "labels": inputs["input_ids"]}
        return super().training_step(model, inputs, *args)


class EditsInPlace(OwnLossTrainer):
    def training_step(self, model: nn.Module, inputs: Any, *args: Any) -> Tensor:
        inputs["labels"] = inputs["input_ids"]
        return super().training_step(model, inputs, *args)


class AddsBeforeLayer2(OwnLossTrainer):
    def _prepare_inputs(self, inputs: Any) -> Any:
        inputs["labels"] = inputs["input_ids"]
        return super()._prepare_inputs(inputs)


class AddsBeforeLayer3(OwnLossTrainer):
    def _prepare_inputs(self, inputs: Any) -> Any:
        inputs = super()._prepare_inputs(inputs)
        inputs["labels"] = inputs["input_ids"]
        return inputs


class AddsInTheLoss(OwnLossTrainer):
    def compute_guarded_loss(self, model: nn.Module, model_inputs: Any, *args: Any) -> tuple[Tensor, Any]:
        outputs = model(**model_inputs, labels=model_inputs["input_ids"])
        return next_token_loss(outputs, model_inputs["input_ids"]), outputs


@pytest.mark.parametrize(
    ("kind", "layer", "method"),
    [
        (RebuildsTheBatch, 1, "training_step"),
        (RebuildsInALocal, 1, "training_step"),
        (EditsInPlace, 1, "training_step"),
        (AddsBeforeLayer2, 2, "_prepare_inputs"),
        (AddsBeforeLayer3, 3, "_prepare_inputs"),
        (AddsInTheLoss, 5, "compute_guarded_loss"),
    ],
)
def test_a_subclass(tmp_path: Path, kind: type[Trainer], layer: int, method: str) -> None:
    leak = first_leak(tmp_path, kind)
    assert leak.layer == layer
    assert leak.injector.origin.startswith(f"{kind.__name__}.{method} ({HERE}")


class BelowTheGuard(Trainer):
    def _prepare_inputs(self, inputs: Any) -> Any:
        return {**super()._prepare_inputs(inputs), "labels": inputs["input_ids"]}


class Guarded(OwnLossTrainer, BelowTheGuard):
    pass


def test_a_trainer_beneath_the_mixin(tmp_path: Path) -> None:
    leak = first_leak(tmp_path, Guarded)
    assert leak.layer == 2
    assert leak.injector.origin.startswith(f"BelowTheGuard._prepare_inputs ({HERE}")


class PatchingCallback(TrainerCallback):
    """A callback that puts itself in front of ``training_step``."""

    trainer: Any = None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        stock = self.trainer.training_step

        def training_step(model: nn.Module, inputs: Any, *args: Any) -> Tensor:
            return stock(model, {**inputs, "labels": inputs["input_ids"]}, *args)

        self.trainer.training_step = training_step


def test_a_callback(tmp_path: Path) -> None:
    callback = PatchingCallback()
    trainer = make_trainer(
        tmp_path,
        make_model(),
        kind=OwnLossTrainer,
        data_collator=collate_plain,
        callbacks=[callback],
        max_steps=1,
    )
    callback.trainer = trainer
    trainer.train()
    assert (
        "PatchingCallback.on_train_begin.<locals>.training_step (" in trainer.guard.leaks[0].injector.origin
    )
