"""The code that puts a key where it does not belong, in many ways: each is named with function, file and line.

Every row is real code that adds ``labels``, run with ``LabelGuard(model)`` alone around a Trainer or a loop that does
not know the guard. Decoys that only read or remove ``labels`` are next to it and must not be named.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.hooks import ModelHook, SequentialHook, add_hook_to_module
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    default_data_collator,
)
from transformers.data.data_collator import DataCollatorMixin

from label_guard import Contract, LabelGuard

try:
    import datasets
except ImportError:
    # `make test-guard-versions` runs without it.
    datasets = None

from tiny_guarded import (
    KwargsWrapper,
    StrictLM,
    collate_plain,
    collate_with_labels,
    make_model,
    make_rows,
    make_trainer,
    next_token_loss,
)

pytestmark = pytest.mark.usefixtures("in_tests_folder")

Row = dict[str, Any]
IN_BATCH = "already in the batch, from "
WORDS = 37


class LossWithoutLabels(Trainer):
    """A trainer of the user, which does not know the guard. Its loss reads labels only if there are any."""

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**inputs)
        loss = next_token_loss(outputs, inputs["input_ids"])
        if "labels" in inputs and inputs.get("labels") is None:
            inputs.pop("labels")
        return (loss, outputs) if return_outputs else loss


def place(function: Any) -> str:
    """Return the name that a function should have in a report."""
    while hasattr(function, "func"):
        function = function.func
    code = function.__code__
    folder = Path(__file__).parent
    path = Path(code.co_filename)
    file = path.name if path.parent == folder else str(path).rpartition("site-packages/")[2]
    return f"{function.__qualname__} ({file}:{code.co_firstlineno})"


def train(folder: Path, *, kind: type[Trainer] = LossWithoutLabels, model: Any = None, **options: Any) -> str:
    """Train one step and return the name of the only source."""
    model = make_model() if model is None else model
    options = {"compute_loss_func": None, "data_collator": collate_plain, "max_steps": 1} | options
    is_evaluation = options.pop("evaluate", False)
    trainer = make_trainer(folder, model, kind=kind, **options)
    guard = LabelGuard(model)
    trainer.evaluate() if is_evaluation else trainer.train()
    return only_source(guard)


def only_source(guard: LabelGuard) -> str:
    (name,) = {leak.source.name for leak in guard.leaks}
    return name


def call(model: nn.Module, **inputs: Any) -> str:
    guard = LabelGuard(model)
    model(**({"input_ids": torch.tensor([make_rows(1)[0]["input_ids"]])} | inputs))
    return only_source(guard)


# Collators


def collate_by_partial(rows: list[Row], key: str) -> Any:
    batch = collate_plain(rows)
    batch[key] = batch["input_ids"]
    return batch


def add_to_batch(batch: Any) -> Any:
    batch["labels"] = batch["input_ids"]
    return batch


def collate_through_a_helper(rows: list[Row]) -> Any:
    return add_to_batch(collate_plain(rows))


class CollateMethod:
    def build(self, rows: list[Row]) -> Any:
        return dict(collate_plain(rows), labels=collate_plain(rows)["input_ids"])


@dataclass
class PreferenceCollator(DataCollatorMixin):
    """A collator in the form of TRL's: a dataclass that inherits ``__call__``."""

    return_tensors: str = "pt"
    label_key: str = "labels"

    def torch_call(self, examples: list[Row]) -> Any:
        batch = collate_plain(examples)
        batch[self.label_key] = batch["input_ids"]
        return batch


class InheritsCall(PreferenceCollator):
    pass


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{index}": index for index in range(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w1")


# Datasets


class Rows(Dataset[Row]):
    """A dataset of the user, whose rows have no labels."""

    def __init__(self, rows: Any = None) -> None:
        self.rows = make_rows() if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        return dict(self.rows[index])


class LabelledRows(Rows):
    def __getitem__(self, index: int) -> Row:
        row = super().__getitem__(index)
        return {**row, "labels": row["input_ids"]}


class LabelledBatches(Rows):
    def __getitems__(self, indices: list[int]) -> list[Row]:
        rows = [super(LabelledBatches, self).__getitem__(index) for index in indices]
        for row in rows:
            row["labels"] = row["input_ids"]
        return rows


class LabelledStream(IterableDataset[Row]):
    def __iter__(self) -> Iterator[Row]:
        for row in make_rows():
            row["labels"] = row["input_ids"]
            yield row


def add_to_row(row: Any) -> Any:
    row["labels"] = row["input_ids"]
    return row


def generate_rows() -> Iterator[Row]:
    for row in make_rows():
        yield {"labels": row["input_ids"], **row}


def table() -> Any:
    return datasets.Dataset.from_list(make_rows())


def rows_with(column: str) -> list[Row]:
    return [row | {column: row["input_ids"]} for row in make_rows()]


class AddingLoader:
    """An object around a loader that adds labels to its batches."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            batch["labels"] = batch["input_ids"]
            yield batch


class AddsInItsLoader(DataLoader[Any]):
    def __iter__(self) -> Any:
        return map(add_to_batch, super().__iter__())


class TokenizedText(Dataset[Any]):
    """A dataset that calls a tokenizer, whose code writes labels if it is given target texts."""

    def __init__(self) -> None:
        self.tokenizer = make_tokenizer()

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return dict(self.tokenizer("w3 w4 w5", max_length=3, truncation=True, return_token_type_ids=False))


# Trainers and callbacks


class HasAnAddingLoader(LossWithoutLabels):
    def get_train_dataloader(self) -> Any:
        return AddingLoader(super().get_train_dataloader())


class HasALoaderOfItsOwn(LossWithoutLabels):
    def get_train_dataloader(self) -> Any:
        return AddsInItsLoader(self.train_dataset, batch_size=2, collate_fn=self.data_collator)


class AddsInTrainingStep(LossWithoutLabels):
    def training_step(self, model: nn.Module, inputs: Any, *args: Any) -> Tensor:
        inputs["labels"] = inputs["input_ids"]
        return super().training_step(model, inputs, *args)


class AddsByAHelper(LossWithoutLabels):
    prefix = "lab"

    def training_step(self, model: nn.Module, inputs: Any, *args: Any) -> Tensor:
        self.augment(inputs)
        return super().training_step(model, inputs, *args)

    def augment(self, inputs: Any) -> None:
        inputs[self.prefix + "els"] = inputs["input_ids"]


class AddsInPrepareInputs(LossWithoutLabels):
    def _prepare_inputs(self, inputs: Any) -> Any:
        inputs = super()._prepare_inputs(inputs)
        inputs["labels"] = inputs["input_ids"]
        return inputs


class AddsWhereBatchesAreTaken(LossWithoutLabels):
    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches, count = super().get_batch_samples(*args, **kwargs)
        for batch in batches:
            batch["labels"] = batch["input_ids"]
        return batches, count


class AddsInTheLoss(Trainer):
    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**inputs, labels=inputs["input_ids"])
        return next_token_loss(outputs, inputs["input_ids"])


class SwapsTheCollator(TrainerCallback):
    def on_epoch_begin(self, *_: Any, train_dataloader: Any, **__: Any) -> None:
        getattr(train_dataloader, "base_dataloader", train_dataloader).collate_fn = collate_with_labels


class EditsTheBatch(TrainerCallback):
    """A callback that puts a function of its own around a method of the trainer."""

    trainer: Any = None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        prepare = self.trainer._prepare_inputs

        def edit(inputs: Any) -> Any:
            inputs = prepare(inputs)
            inputs["labels"] = inputs["input_ids"]
            return inputs

        self.trainer._prepare_inputs = edit


class WithItsCallback(LossWithoutLabels):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for callback in self.callback_handler.callbacks:
            callback.trainer = self


# What is on the way of a call


class UpdatesKwargs(KwargsWrapper):
    def forward(self, **kwargs: Any) -> Any:
        kwargs.update(labels=kwargs["input_ids"])
        return super().forward(**kwargs)


class CallsAHelper(KwargsWrapper):
    def forward(self, **kwargs: Any) -> Any:
        return super().forward(**add_to_batch(kwargs))


def look_for_labels(module: nn.Module, args: Any, kwargs: Any) -> None:
    kwargs.pop("labels", None)


add_by_hook = lambda module, args, kwargs: (args, {**kwargs, "labels": kwargs["input_ids"]})  # noqa: E731


def add_by_position(module: nn.Module, args: Any) -> Any:
    return (*args, torch.zeros(1)) if type(module) is LabelsSecondLM else args


class LabelsSecondLM(StrictLM):
    def forward(self, input_ids: Any = None, labels: Any = None, attention_mask: Any = None) -> Any:  # type: ignore[override]
        return super().forward(input_ids, attention_mask)


class AddsInAccelerate(ModelHook):
    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        kwargs["labels"] = kwargs["input_ids"]
        return args, kwargs


class LooksInAccelerate(ModelHook):
    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return args, {key: value for key, value in kwargs.items() if key != "labels"}


def run_two_hooks(_: Path) -> str:
    model = make_model()
    model.register_forward_pre_hook(look_for_labels, with_kwargs=True)
    model.register_forward_pre_hook(add_by_hook, with_kwargs=True)
    return call(model)


def run_global_hook(_: Path) -> str:
    contract = Contract("LabelsSecondLM", frozenset({"input_ids", "attention_mask"}), frozenset({"labels"}))
    model = make_model(LabelsSecondLM)
    guard = LabelGuard(model, contract)
    removable = register_module_forward_pre_hook(add_by_position)
    try:
        model(torch.tensor([[3, 4, 5]]))
    finally:
        removable.remove()
    return only_source(guard)


def run_accelerate_hooks(_: Path) -> str:
    model = make_model()
    guard = LabelGuard(model)
    add_hook_to_module(model, SequentialHook(LooksInAccelerate(), AddsInAccelerate()))
    wrapped = KwargsWrapper(model)
    wrapped(input_ids=torch.tensor([[3, 4, 5]]))
    return only_source(guard)


def run_peft(config: Any, folder: Path) -> str:
    model = get_peft_model(make_model(), config)
    guard = LabelGuard(model)
    model(input_ids=torch.tensor([[3, 4, 5]]))
    return only_source(guard)


# Loops of the user


def run_own_loop(_: Path) -> str:
    model = make_model()
    guard = LabelGuard(model)
    loader = DataLoader(make_rows(), batch_size=2, collate_fn=collate_with_labels)
    for batch in loader:
        model(**batch)
    return only_source(guard)


def run_accelerated_loop(_: Path) -> str:
    accelerator = Accelerator(cpu=True)
    model, loader = accelerator.prepare(make_model(), DataLoader(LabelledRows(), collate_fn=collate_plain))
    guard = LabelGuard(model)
    batches = iter(loader)
    model(**next(batches))
    return only_source(guard)


Injector = tuple[Callable[[Path], str], str]


def trained(**options: Any) -> Callable[[Path], str]:
    return lambda folder: train(folder, **options)


def on_data(**options: Any) -> list[Callable[[Path], str]]:
    """Return a run in training and one in evaluation."""
    evaluated = {"eval_dataset": options["train_dataset"]} if "train_dataset" in options else {}
    return [trained(**options), trained(evaluate=True, **options, **evaluated)]


MLM = DataCollatorForLanguageModeling
COLLATORS: dict[str, tuple[dict[str, Any], str]] = {
    "a collator": ({"data_collator": collate_with_labels}, place(collate_with_labels)),
    "a partial collator": (
        {"data_collator": functools.partial(collate_by_partial, key="labels")},
        place(collate_by_partial),
    ),
    "a collator that calls a helper": (
        {"data_collator": collate_through_a_helper},
        f"{place(collate_through_a_helper)}, in {place(add_to_batch)}",
    ),
    "a bound method": ({"data_collator": CollateMethod().build}, place(CollateMethod.build)),
    "a dataclass like TRL's": ({"data_collator": PreferenceCollator()}, place(PreferenceCollator.torch_call)),
    "a collator that inherits all": (
        {"data_collator": InheritsCall()},
        f"InheritsCall ({place(DataCollatorMixin.__call__).rpartition('(')[2]}, in "
        f"{place(PreferenceCollator.torch_call)}",
    ),
    "DataCollatorForLanguageModeling": (
        {"data_collator": MLM(make_tokenizer(), mlm=False)},
        place(MLM.torch_call),
    ),
    "a collator after a removal of columns": (
        {"data_collator": collate_with_labels, "remove_unused_columns": True, "train_dataset": Rows()},
        place(collate_with_labels),
    ),
}
DATASETS: dict[str, tuple[dict[str, Any], str]] = {
    "__getitem__": ({"train_dataset": LabelledRows()}, f"the dataset {place(LabelledRows.__getitem__)}"),
    "__getitems__": (
        {"train_dataset": LabelledBatches()},
        f"the dataset {place(LabelledBatches.__getitems__)}",
    ),
    "__iter__": ({"train_dataset": LabelledStream()}, f"the dataset {place(LabelledStream.__iter__)}"),
    "Subset and ConcatDataset": (
        {"train_dataset": Subset(ConcatDataset([Rows(), LabelledRows()]), range(8, 16))},
        f"the dataset {place(LabelledRows.__getitem__)}",
    ),
    "a tokenizer, and a collator": (
        {"train_dataset": TokenizedText(), "data_collator": MLM(make_tokenizer(), mlm=False)},
        f"the collator {place(MLM.torch_call)}",
    ),
    "a column": ({"train_dataset": Rows(rows_with("labels"))}, "the dataset's column 'labels'"),
    "a renamed column": (
        {"train_dataset": rows_with("label_ids"), "data_collator": default_data_collator},
        f"the collator {place(default_data_collator)} from the dataset's column 'label_ids'",
    ),
}
if datasets is not None:
    DATASETS |= {
        "with_transform": (
            {"train_dataset": table().with_transform(add_to_row), "data_collator": default_data_collator},
            f"the dataset's transform {place(add_to_row)}",
        ),
        "map of a stream": (
            {
                "train_dataset": table().to_iterable_dataset().map(add_to_row),
                "data_collator": default_data_collator,
            },
            f"the dataset's map function {place(add_to_row)}",
        ),
        "from_generator": (
            {"train_dataset": datasets.IterableDataset.from_generator(generate_rows)},
            f"the dataset's generator {place(generate_rows)}",
        ),
        "a column of a table": (
            {"train_dataset": table().map(add_to_row), "data_collator": default_data_collator},
            "the dataset's column 'labels'",
        ),
    }
IN_DATA = {
    f"{name}, {when}": (run, IN_BATCH + source)
    for name, (options, source) in (
        *((name, (options, f"the collator {source}")) for name, (options, source) in COLLATORS.items()),
        *DATASETS.items(),
    )
    for when, run in zip(("training", "evaluation"), on_data(**options), strict=True)
}
LORA = LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True)
ADALORA = AdaLoraConfig(
    task_type="CAUSAL_LM", target_modules=["c_attn"], total_step=10, tinit=1, tfinal=1, fan_in_fan_out=True
)
ELSEWHERE: dict[str, Injector] = {
    "an object around the loader": (
        trained(kind=HasAnAddingLoader),
        f"{IN_BATCH}the loader {place(AddingLoader.__iter__)}",
    ),
    "a subclass of DataLoader": (
        trained(kind=HasALoaderOfItsOwn),
        f"{IN_BATCH}the loader {place(AddsInItsLoader.__iter__)}, in {place(add_to_batch)}",
    ),
    "the dataset of an evaluation in training": (
        trained(eval_dataset=LabelledRows(), eval_strategy="steps", eval_steps=1),
        f"{IN_BATCH}the dataset {place(LabelledRows.__getitem__)}",
    ),
    "swapped collate_fn": (
        trained(callbacks=[SwapsTheCollator()]),
        f"{IN_BATCH}the collator {place(collate_with_labels)}",
    ),
    "a callback that edits the batch": (
        trained(kind=WithItsCallback, callbacks=[EditsTheBatch()]),
        "EditsTheBatch.on_train_begin.<locals>.edit (test_injectors.py:",
    ),
    "a helper with a computed key": (
        trained(kind=AddsByAHelper),
        f", in {place(AddsByAHelper.augment)}",
    ),
    "training_step": (
        trained(kind=AddsInTrainingStep),
        "AddsInTrainingStep.training_step (test_injectors.py:",
    ),
    "_prepare_inputs": (trained(kind=AddsInPrepareInputs), place(AddsInPrepareInputs._prepare_inputs)),
    "get_batch_samples": (
        trained(kind=AddsWhereBatchesAreTaken),
        place(AddsWhereBatchesAreTaken.get_batch_samples),
    ),
    "compute_loss": (trained(kind=AddsInTheLoss), "AddsInTheLoss.compute_loss (test_injectors.py:"),
    "kw.update in a wrapper": (
        lambda _: call(UpdatesKwargs(make_model())),
        "UpdatesKwargs.forward (test_injectors.py:",
    ),
    "a helper of a wrapper": (
        lambda _: call(CallsAHelper(make_model())),
        "CallsAHelper.forward (test_injectors.py:",
    ),
    "a lambda hook among two": (run_two_hooks, f"pre-hook {place(add_by_hook)} on StrictLM"),
    "a global hook": (run_global_hook, f"pre-hook {place(add_by_position)} on LabelsSecondLM"),
    "hooks of accelerate": (
        run_accelerate_hooks,
        f"accelerate hook {place(AddsInAccelerate.pre_forward)} on StrictLM",
    ),
    "PEFT": (functools.partial(run_peft, LORA), "PeftModelForCausalLM.forward (peft/peft_model.py:"),
    "AdaLora": (functools.partial(run_peft, ADALORA), "PeftModelForCausalLM.forward (peft/peft_model.py:"),
    "a loop of the user": (run_own_loop, f", from the collator {place(collate_with_labels)}"),
    "a loop with Accelerate": (run_accelerated_loop, f", from the dataset {place(LabelledRows.__getitem__)}"),
}
INJECTORS: dict[str, Injector] = IN_DATA | ELSEWHERE


@pytest.mark.parametrize("name", INJECTORS)
def test_the_code_that_added_the_key_is_named_and_no_other(name: str, tmp_path: Path) -> None:
    run, expected = INJECTORS[name]
    source = run(tmp_path)
    assert expected in source
    assert " or " not in source
    if name in IN_DATA:
        assert source == expected
