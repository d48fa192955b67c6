"""For each way in which a key gets into a call or a batch, the guard names the code that added it."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, default_data_collator

from label_guard import Contract, LabelGuard, LabelGuardMixin, Leak
from label_guard.remedies import find_remedy
from tiny_guarded import (
    IgnoringLM,
    KwargsWrapper,
    StrictLM,
    add_labels,
    collate_plain,
    collate_with_labels,
    make_model,
    make_rows,
    make_trainer,
    next_token_loss,
)

pytestmark = pytest.mark.usefixtures("in_tests_folder")

HERE = "test_sources.py:"
IDS = torch.arange(5).unsqueeze(0)


class LabelFreeTrainer(LabelGuardMixin, Trainer):
    def compute_guarded_loss(
        self, model: nn.Module, model_inputs: Any, targets: Any, metadata: Any, num_items_in_batch: Any
    ) -> tuple[Tensor, Any]:
        outputs = model(**model_inputs)
        return next_token_loss(outputs, model_inputs["input_ids"]), outputs


def lone_leak(model: nn.Module, *args: Any, **kwargs: Any) -> Leak:
    """Guard a model, call it once, and return the only leak."""
    guard = LabelGuard(model)
    model(*args, **kwargs)
    (leak,) = guard.leaks
    return leak


def first_leak(folder: Path, kind: type[Trainer] = LabelFreeTrainer, **options: Any) -> Leak:
    """Train one step and return the first leak."""
    options = {"compute_loss_func": None, "data_collator": collate_plain} | options
    trainer = make_trainer(
        folder, options.pop("model", None) or make_model(), kind=kind, max_steps=1, **options
    )
    trainer.train()
    return trainer.guard.leaks[0]


# Code that adds a key to the call


@pytest.mark.parametrize(
    ("task", "peft_class"),
    [("CAUSAL_LM", "PeftModelForCausalLM"), ("SEQ_CLS", "PeftModelForSequenceClassification")],
)
def test_the_task_classes_of_peft_are_named(task: str, peft_class: str) -> None:
    adapter = LoraConfig(task_type=TaskType[task], target_modules=["c_attn"])
    leak = lone_leak(get_peft_model(make_model(), adapter), input_ids=IDS, return_dict=None)
    assert leak.source.name.startswith(f"{peft_class}.forward (peft/peft_model.py:")
    assert leak.source.remedy.endswith("make the adapter with task_type=None")


def test_a_wrapper_that_adds_labels_is_named() -> None:
    class Adding(KwargsWrapper):
        def forward(self, **kwargs: Any) -> Any:
            kwargs["labels"] = kwargs["input_ids"]
            return super().forward(**kwargs)

    origin = lone_leak(Adding(make_model()), input_ids=IDS).source.name
    assert f"Adding.forward ({HERE}" in origin


def test_a_wrapper_that_only_passes_labels_on_is_not_blamed() -> None:
    origin = lone_leak(KwargsWrapper(make_model()), input_ids=IDS, labels=IDS.clone()).source.name
    assert origin.startswith(f"test_a_wrapper_that_only_passes_labels_on_is_not_blamed ({HERE}")


def look_only(module: nn.Module, args: Any, kwargs: Any) -> None:
    assert kwargs


@pytest.mark.parametrize("where", ["base", "wrapper", "everywhere"])
def test_the_hook_that_adds_labels_is_named_and_others_are_not(where: str) -> None:
    model = KwargsWrapper(make_model())
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
        leak.source.name
        == f"pre-hook add_labels (tiny_guarded.py:{add_labels.__code__.co_firstlineno}) on {type(place).__name__}"
    )
    assert leak.source.remedy.startswith("Change the hook so that it does not add")


def test_the_caller_is_named_when_it_calls_forward_directly() -> None:
    model = make_model()
    guard = LabelGuard(model)
    model.forward(IDS, labels=None)
    assert guard.leaks[0].source.name.startswith(
        f"test_the_caller_is_named_when_it_calls_forward_directly ({HERE}"
    )


def test_the_caller_is_named_when_it_passes_labels_by_position() -> None:
    class PositionalWrapper(nn.Module):
        """A wrapper that passes its arguments on by position."""

        def __init__(self) -> None:
            super().__init__()
            self.model = LabelsSecond()

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.model(*args, **kwargs)

    class LabelsSecond(nn.Module):
        def forward(self, speech: Tensor, labels: Any = None) -> Tensor:
            return speech

    contract = Contract("LabelsSecond", frozenset({"speech"}), frozenset({"labels"}))
    model = PositionalWrapper()
    guard = LabelGuard(model, contract)
    first, second = torch.ones(1), torch.zeros(1)
    model(first, second)
    assert guard.leaks[0].source.name.startswith(
        f"test_the_caller_is_named_when_it_passes_labels_by_position ({HERE}"
    )


@pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4.46 looks at its own models only")
def test_the_stock_trainer_is_named_for_the_count_that_it_passes_into_a_wrapper(tmp_path: Path) -> None:
    model = KwargsWrapper(make_model())
    guard = LabelGuard(model)
    make_trainer(tmp_path, model, kind=Trainer, max_steps=1).train()
    leak = next(leak for leak in guard.leaks if leak.key == "num_items_in_batch")
    assert "transformers/trainer.py:" in leak.source.name
    assert leak.source.remedy.endswith("set trainer.model_accepts_loss_kwargs = False")


# A key that came with the batch


def test_a_collator_that_adds_labels_is_named(tmp_path: Path) -> None:
    leak = first_leak(tmp_path, data_collator=collate_with_labels)
    assert leak.source.name.startswith(
        "already in the batch, from the collator collate_with_labels (tiny_guarded.py:"
    )
    assert leak.source.remedy.startswith("Leave it out in the collator")


def test_a_column_of_the_dataset_is_named(tmp_path: Path) -> None:
    rows = [row | {"labels": row["input_ids"]} for row in make_rows()]
    leak = first_leak(tmp_path, train_dataset=rows)
    assert leak.source.name == "already in the batch, from the dataset's column 'labels'"
    assert leak.source.remedy.startswith("Remove the column from the dataset")


def test_the_column_that_the_default_collator_renames_is_named(tmp_path: Path) -> None:
    rows = [row | {"label_ids": row["input_ids"]} for row in make_rows()]
    leak = first_leak(tmp_path, train_dataset=rows, data_collator=default_data_collator)
    assert "from the collator default_data_collator (transformers/data/data_collator.py:" in leak.source.name
    assert leak.source.name.endswith("from the dataset's column 'label_ids'")
    assert leak.source.remedy.startswith("It renames label and label_ids to labels")


class Stream(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(make_rows())


def test_for_a_streamed_dataset_the_collator_is_named_if_its_code_adds_the_key(tmp_path: Path) -> None:
    leak = first_leak(tmp_path, train_dataset=Stream(), data_collator=collate_with_labels)
    assert "from the collator collate_with_labels (" in leak.source.name
    assert " or " not in leak.source.name


class EditsInEvaluation(LabelFreeTrainer):
    def _prepare_inputs(self, inputs: Any) -> Any:
        return {**super()._prepare_inputs(inputs), "labels": inputs["input_ids"]}


def test_a_subclass_that_edits_the_batch_in_evaluation_is_named(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_model(), kind=EditsInEvaluation, data_collator=collate_plain)
    trainer.evaluate()
    assert trainer.guard.leaks[0].source.name.startswith(f"EditsInEvaluation._prepare_inputs ({HERE}")


def test_in_evaluation_the_column_is_looked_up_in_the_eval_dataset(tmp_path: Path) -> None:
    rows = [row | {"labels": row["input_ids"]} for row in make_rows(4)]
    trainer = make_trainer(
        tmp_path, make_model(), kind=LabelFreeTrainer, data_collator=collate_plain, eval_dataset=rows
    )
    trainer.evaluate()
    assert trainer.guard.leaks[0].source.name == "already in the batch, from the dataset's column 'labels'"


# Code that edits the batch in the trainer


class RebuildsTheBatch(LabelFreeTrainer):
    def training_step(self, model: nn.Module, inputs: Any, *args: Any) -> Tensor:
        return super().training_step(model, {**inputs, "labels": inputs["input_ids"]}, *args)


class RebuildsInALocal(LabelFreeTrainer):
    def training_step(self, model: nn.Module, inputs: Any, *args: Any) -> Tensor:
        inputs = {**inputs, "labels": inputs["input_ids"]}
        return super().training_step(model, inputs, *args)


class EditsInPlace(LabelFreeTrainer):
    def training_step(self, model: nn.Module, inputs: Any, *args: Any) -> Tensor:
        inputs["labels"] = inputs["input_ids"]
        return super().training_step(model, inputs, *args)


class AddsBeforeLayer2(LabelFreeTrainer):
    def _prepare_inputs(self, inputs: Any) -> Any:
        inputs["labels"] = inputs["input_ids"]
        return super()._prepare_inputs(inputs)


class AddsBeforeLayer3(LabelFreeTrainer):
    def _prepare_inputs(self, inputs: Any) -> Any:
        inputs = super()._prepare_inputs(inputs)
        inputs["labels"] = inputs["input_ids"]
        return inputs


class AddsInTheLoss(LabelFreeTrainer):
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
def test_the_method_of_a_subclass_that_adds_labels_is_named(
    tmp_path: Path, kind: type[Trainer], layer: int, method: str
) -> None:
    leak = first_leak(tmp_path, kind)
    assert leak.layer == layer
    assert leak.source.name.startswith(f"{kind.__name__}.{method} ({HERE}")


class BelowTheGuard(Trainer):
    def _prepare_inputs(self, inputs: Any) -> Any:
        return {**super()._prepare_inputs(inputs), "labels": inputs["input_ids"]}


class GuardedFromAbove(LabelFreeTrainer, BelowTheGuard):
    pass


def test_a_base_class_of_the_guarded_trainer_that_adds_labels_is_named(tmp_path: Path) -> None:
    leak = first_leak(tmp_path, GuardedFromAbove)
    assert leak.layer == 2
    assert leak.source.name.startswith(f"BelowTheGuard._prepare_inputs ({HERE}")


class PatchingCallback(TrainerCallback):
    """A callback that replaces ``training_step`` by a function that adds labels."""

    trainer: Any = None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        stock = self.trainer.training_step

        def training_step(model: nn.Module, inputs: Any, *args: Any) -> Tensor:
            return stock(model, {**inputs, "labels": inputs["input_ids"]}, *args)

        self.trainer.training_step = training_step


def test_a_callback_that_replaces_training_step_is_named(tmp_path: Path) -> None:
    callback = PatchingCallback()
    trainer = make_trainer(
        tmp_path,
        make_model(),
        kind=LabelFreeTrainer,
        data_collator=collate_plain,
        callbacks=[callback],
        max_steps=1,
    )
    callback.trainer = trainer
    trainer.train()
    assert "PatchingCallback.on_train_begin.<locals>.training_step (" in trainer.guard.leaks[0].source.name


# Where the code does not decide, no one is blamed alone


class AddsByAComputedKey(LabelFreeTrainer):
    def training_step(self, model: nn.Module, inputs: Any, *args: Any) -> Tensor:
        self.rename(inputs, "lab")
        return super().training_step(model, inputs, *args)

    def rename(self, inputs: Any, prefix: str) -> None:
        inputs[f"{prefix}els"] = inputs["input_ids"]

    def _prepare_inputs(self, inputs: Any) -> Any:
        inputs = super()._prepare_inputs(inputs)
        name = self.args.run_name or "mask"
        inputs[name + "s"] = inputs.pop("attention_mask")
        inputs["attention_mask"] = inputs.pop(name + "s")
        return inputs


def test_two_methods_that_write_computed_keys_are_both_named(tmp_path: Path) -> None:
    name = first_leak(tmp_path, AddsByAComputedKey).source.name
    assert f"in AddsByAComputedKey.rename ({HERE}" in name
    assert f" or AddsByAComputedKey._prepare_inputs ({HERE}" in name


class RowsOfAnyKeys(torch.utils.data.Dataset[Any]):
    """A dataset whose code does not say which keys its rows have."""

    def __init__(self, extra: str) -> None:
        self.rows, self.start = make_rows(), extra

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        row = self.rows[index]
        return {**row, self.start + "els": row["input_ids"]}


def collate_what_is_there(rows: list[Any]) -> Any:
    batch = collate_plain(rows)
    batch["labels"] = torch.tensor([row["labels"] for row in rows])
    return batch


def test_a_dataset_is_named_with_the_collator_that_reads_the_key_from_its_rows(tmp_path: Path) -> None:
    leak = first_leak(tmp_path, train_dataset=RowsOfAnyKeys("lab"), data_collator=collate_what_is_there)
    assert f"from the dataset RowsOfAnyKeys.__getitem__ ({HERE}" in leak.source.name
    assert f" or from the collator collate_what_is_there ({HERE}" in leak.source.name


def test_a_column_is_named_with_the_collator_that_writes_the_key_too(tmp_path: Path) -> None:
    rows = [row | {"labels": row["input_ids"]} for row in make_rows()]
    name = first_leak(tmp_path, train_dataset=rows, data_collator=collate_with_labels).source.name
    assert name.startswith(
        "already in the batch, from the dataset's column 'labels' or from the collator collate_with"
    )


def rename_by_hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return args, {**kwargs, f"{'label'}s": kwargs["input_ids"]}


def remove_by_hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
    kwargs.pop("labels", None)
    return args, dict(kwargs)


def test_a_hook_that_only_removes_the_key_is_not_named() -> None:
    model = make_model()
    for hook in (remove_by_hook, rename_by_hook):
        model.register_forward_pre_hook(hook, with_kwargs=True)
    name = lone_leak(model, input_ids=IDS).source.name
    assert name.startswith("pre-hook rename_by_hook (")
    assert "remove" not in name


# A report reads no row


class Trap(torch.utils.data.Dataset[Any]):
    """A dataset that must not be asked for anything while a source is looked for."""

    def __init__(self) -> None:
        self.rows, self.reads = make_rows(), 0

    def _open(self) -> None:
        frame = sys._getframe()
        while frame.f_back is not None:
            frame = frame.f_back
            assert not frame.f_code.co_filename.endswith("call_source.py"), "a report touched the dataset"

    def __len__(self) -> int:
        self._open()
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        self._open()
        self.reads += 1
        noise = torch.randint(2, 9, (7,)).tolist()
        return {"input_ids": noise, "attention_mask": [1] * 7, "labels": noise}

    def __getattr__(self, name: str) -> Any:
        self._open()
        raise AttributeError(name)

    @property
    def column_names(self) -> list[str]:
        self._open()
        raise AttributeError("column_names")


def test_a_report_does_not_touch_the_dataset(tmp_path: Path) -> None:
    leak = first_leak(tmp_path, train_dataset=Trap())
    assert f"from the dataset Trap.__getitem__ ({HERE}" in leak.source.name


def run_augmented(folder: Path, kind: type[nn.Module], *, is_guarded: bool) -> tuple[int, list[Any], Any]:
    model, dataset = make_model(kind), Trap()
    trainer = make_trainer(
        folder,
        model,
        kind=LossOnInputs,
        train_dataset=dataset,
        data_collator=collate_plain,
        compute_loss_func=None,
    )
    guard = LabelGuard(model) if is_guarded else None
    trainer.train()
    assert guard is None or guard.leaks
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return dataset.reads, losses, torch.get_rng_state().tolist()


class LossOnInputs(Trainer):
    def compute_loss(self, model: nn.Module, inputs: Any, *_: Any, **__: Any) -> Any:
        return next_token_loss(model(**inputs), inputs["input_ids"])


def test_leaks_change_neither_the_reads_of_an_augmenting_dataset_nor_its_random_numbers(
    tmp_path: Path,
) -> None:
    reference = run_augmented(tmp_path, IgnoringLM, is_guarded=False)
    assert run_augmented(tmp_path, StrictLM, is_guarded=True) == reference


# Remedies


def test_the_remedy_for_a_key_that_is_not_label_like_covers_both_cases() -> None:
    remedy = find_remedy("already in the batch, from the collator collate (a.py:3)", "completion_mask")
    assert remedy.startswith("If the model needs 'completion_mask', let its forward take it")
    assert "If only the trainer reads 'completion_mask', take it out of the batch there" in remedy
    assert "If neither needs it, leave it out in the collator or in the dataset" in remedy


def test_the_remedy_for_a_label_is_to_leave_it_out_or_to_keep_it_for_the_loss() -> None:
    remedy = find_remedy("already in the batch, from the collator collate (a.py:3)", "labels")
    assert remedy.startswith("Leave it out in the collator, or keep it for the loss")
    assert remedy.endswith("the guard keeps it out of the model")
