"""Every route by which a key comes into a model's call, each in real code, and what happens on it under each layer.

A route is run in a column: ``none`` is the stock Trainer, ``1`` to ``5`` the guarded one with that layer alone, ``all``
with all five. The base records each call that reaches it and ignores what it does not take, so that a leak is seen and
the run goes on.
"""

from __future__ import annotations

import inspect
from collections import UserDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BatchEncoding, BatchFeature, Trainer, TrainerCallback, default_data_collator

from label_guard import Contract, LabelGuardMixin
from tiny_guarded import (
    StrictLM,
    collate_plain,
    collate_with_labels,
    make_model,
    make_rows,
    make_trainer,
    next_token_loss,
)

COLUMNS: dict[str, frozenset[int] | None] = {
    "none": None,
    **{str(layer): frozenset({layer}) for layer in range(1, 6)},
    "all": frozenset({1, 2, 3, 4, 5}),
}
Wrap = Callable[[nn.Module], nn.Module]
ALL, FROM_2, FROM_3, ONLY_5 = frozenset("12345"), frozenset("2345"), frozenset("345"), frozenset("5")
INPUTS = frozenset({"input_ids", "attention_mask"})


class RecordingLM(StrictLM):
    """``StrictLM`` with a record of the keys of each call; what ``StrictLM`` does not take it ignores."""

    calls: list[frozenset[str]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = dict(zip(TAKEN, args, strict=False)) | kwargs
        self.calls.append(frozenset(call))
        return super().forward(**{key: value for key, value in call.items() if key in TAKEN})

    def prepare_inputs_for_generation(self, *_: Any, **__: Any) -> None:
        """PEFT's task classes look for it."""


TAKEN = tuple(inspect.signature(StrictLM.forward).parameters)[1:]
RecordingLM.forward.__signature__ = inspect.signature(StrictLM.forward)  # type: ignore[attr-defined]


class LabelsSecondLM(RecordingLM):
    """A model whose second parameter is ``labels``: by position, a label reaches it without its name."""

    def forward(self, input_ids: Any = None, labels: Any = None, attention_mask: Any = None) -> Any:
        given = {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}
        return super().forward(**{key: value for key, value in given.items() if value is not None})


LABELS_SECOND = Contract("LabelsSecondLM", INPUTS, frozenset({"labels"}))


class Wrapper(nn.Module):
    """A module around one model, as people write it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config = getattr(model, "config", None)

    def forward(self, **kwargs: Any) -> Any:
        return self.model(**kwargs)

    def prepare_inputs_for_generation(self, *_: Any, **__: Any) -> None:
        """PEFT's task classes look for it."""


# Trainers: a loss that needs no labels, so that a run without them goes on too


class PlainTrainer(Trainer):
    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = self.call(model, inputs)
        loss = next_token_loss(outputs, inputs["input_ids"])
        return (loss, outputs) if return_outputs else loss

    def call(self, model: nn.Module, inputs: Any) -> Any:
        return model(**inputs)


class OwnLossTrainer(LabelGuardMixin, Trainer):
    def compute_guarded_loss(self, model: nn.Module, model_inputs: Any, *_: Any) -> tuple[Tensor, Any]:
        outputs = self.call(model, model_inputs)
        return next_token_loss(outputs, model_inputs["input_ids"]), outputs

    def call(self, model: nn.Module, inputs: Any) -> Any:
        return model(**inputs)


class GuardedTrainer(LabelGuardMixin, Trainer):
    pass


@dataclass(frozen=True)
class Route:
    """A route: what is special about its batch, its model, its trainer; and the layers that stop it.

    ``stops``: the single layers under which nothing leaks; ``without``: what the stock Trainer does with it
    (``leaks``, ``dies``, ``clean``), ``without_evaluating`` where that differs in evaluate and predict; ``by_mixin``:
    nothing leaks with whatever layer, since the mixin removes the cause; ``why``: why the other layers do not stop it.
    """

    name: str
    stops: frozenset[str]
    without: str = "leaks"
    without_evaluating: str = ""
    by_mixin: bool = False
    why: str = ""
    stages: tuple[str, ...] = ("train",)
    collate: Callable[[Any], Any] = collate_plain
    wrap: Wrap = lambda model: model
    kinds: tuple[type[Trainer], type[Trainer]] = (PlainTrainer, OwnLossTrainer)
    edit: Callable[[type[Trainer]], type[Trainer]] = lambda kind: kind
    after: Callable[[Any], None] = lambda trainer: None
    base: type[RecordingLM] = RecordingLM
    contract: Contract | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What reached the base on a route: keys outside the contract, and inputs of the batch that were missing."""

    leaked: frozenset[str]
    missing: frozenset[str]
    died: str = ""

    @property
    def cell(self) -> str:
        if self.missing:
            return "loses " + ", ".join(sorted(self.missing))
        return "leaks" if self.leaked else "dies" if self.died else "clean"


def run(route: Route, stage: str, column: str, folder: Path) -> Outcome:
    """Run a route on a stage in a column."""
    layers = COLUMNS[column]
    base = make_model(route.base)
    base.calls = []
    options = {"compute_loss_func": None, "data_collator": route.collate, "max_steps": 1} | dict(
        route.options
    )
    kind = route.edit(route.kinds[layers is not None])
    trainer = make_trainer(folder, route.wrap(base), kind=kind, guard_layers=layers, **options)
    if layers is not None:
        trainer.guard_contract = route.contract
        trainer.guard.alive()  # attached before `after`, which may register hooks
    route.after(trainer)
    died = ""
    try:
        if stage == "train":
            trainer.train()
        else:
            trainer.evaluate() if stage == "evaluate" else trainer.predict(trainer.eval_dataset)
    except (TypeError, AttributeError, ValueError) as error:
        died = f"{type(error).__name__}: {error}"
    return observe(base.calls, died)


def observe(calls: list[frozenset[str]], died: str = "") -> Outcome:
    allowed = frozenset(TAKEN)
    leaked = frozenset().union(*calls) - allowed
    missing = frozenset().union(*(INPUTS - call for call in calls))
    return Outcome(leaked, missing, died)


# Batches


def collate_as(key: str) -> Callable[[Any], dict[str, Tensor]]:
    def collate(rows: Any) -> dict[str, Tensor]:
        return {key if name == "labels" else name: value for name, value in collate_with_labels(rows).items()}

    return collate


@dataclass
class DataclassBatch:
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


def batch_of(kind: Callable[[dict[str, Tensor]], Any]) -> Callable[[Any], Any]:
    return lambda rows: kind(collate_with_labels(rows))


BATCHES: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "a UserDict": UserDict,
    "a BatchEncoding": BatchEncoding,
    "a BatchFeature": BatchFeature,
    "a dataclass": lambda batch: DataclassBatch(**batch),
    "an attribute object": lambda batch: SimpleNamespace(**batch),
    "a nested dict": lambda batch: {"targets": {"labels": batch.pop("labels")}, "inputs": batch},
}

# Models


def lora(task: str | None) -> Wrap:
    return lambda model: get_peft_model(model, LoraConfig(task_type=task, target_modules=["c_attn"]))


def wrapped(wrap: Wrap) -> Wrap:
    return lambda model: Wrapper(wrap(model))


def around_wrapper(wrap: Wrap) -> Wrap:
    return lambda model: wrap(Wrapper(model))


def adalora(model: nn.Module) -> nn.Module:
    config = AdaLoraConfig(
        task_type="CAUSAL_LM", target_modules=["c_attn"], total_step=10, init_r=2, target_r=1
    )
    return get_peft_model(model, config)


def add_adapter(model: Any) -> nn.Module:
    model.add_adapter(LoraConfig(target_modules=["c_attn"]))
    return model


def merged(model: nn.Module) -> nn.Module:
    return lora("CAUSAL_LM")(model).merge_and_unload().requires_grad_(True)


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(lora("CAUSAL_LM")(model), backend="eager")  # type: ignore[return-value]


# Code on the way


def add_labels(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return args, {**kwargs, "labels": kwargs["input_ids"]}


def hook(where: str) -> Callable[[Any], Any]:
    """Register a hook on the wrapper or the base of a model, or of a trainer's."""

    def register(owner: Any) -> Any:
        model = owner if isinstance(owner, nn.Module) else owner.model
        wrapper = model if isinstance(model, Wrapper) else Wrapper(model)
        place = wrapper if where == "wrapper" else wrapper.model
        place.register_forward_pre_hook(add_labels, with_kwargs=True)
        return wrapper

    return register


def editing(method: str, *, after: bool = False) -> Callable[[type[Trainer]], type[Trainer]]:
    """A subclass that adds labels to the batch before, or after, a method of the trainer."""

    def edit(kind: type[Trainer]) -> type[Trainer]:
        def edited(self: Any, *args: Any) -> Any:
            stock = getattr(super(Edited, self), method)
            if after:
                return label(stock(*args))
            return stock(*(label(arg) if isinstance(arg, Mapping) else arg for arg in args))

        Edited = type("Edited", (kind,), {method: edited})
        return Edited

    return edit


def label(batch: Any) -> Any:
    batch["labels"] = batch["input_ids"]
    return batch


def calling(call: Callable[[nn.Module, Any], Any]) -> Callable[[type[Trainer]], type[Trainer]]:
    """A subclass whose loss calls the model in its own way."""
    return lambda kind: type("Calling", (kind,), {"call": lambda self, model, inputs: call(model, inputs)})


class EditingCallback(TrainerCallback):
    """A callback that puts itself in front of ``training_step``."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        stock = self.trainer.training_step
        self.trainer.training_step = lambda model, inputs, *rest: stock(model, label(inputs), *rest)


EVERY = ("train", "evaluate", "predict")
BOTH = ("train", "evaluate")  # predict passes where evaluate does
BY_MIXIN = "the mixin hands the labels to the loss itself, and the count to no model that does not take it"
NOT_1 = "evaluate and predict do not run training_step"
AFTER_4 = "it comes into the call after layer 4"
STOCK_CANNOT_READ = {
    "a dataclass": "dies",
    "an attribute object": "dies",
    "a nested dict": "loses attention_mask, input_ids",
}
TASKS = ("CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", "SEQ_2_SEQ_LM", "QUESTION_ANS")

ROUTES = [
    *(Route(f"collator adds `{key}`", ALL, why=NOT_1, collate=collate_as(key),
            stages=EVERY if key == "labels" else BOTH)
      for key in ("labels", "label", "label_ids", "shift_labels")),
    Route("default_data_collator renames `label_ids`", ALL, stages=BOTH, why=NOT_1, collate=default_data_collator,
          options={name: [row | {"label_ids": row["input_ids"]} for row in make_rows()]
                   for name in ("train_dataset", "eval_dataset")}),
    *(Route(f"batch is {name}", ALL, stages=BOTH, why=NOT_1, collate=batch_of(kind),
            without=STOCK_CANNOT_READ.get(name, "leaks")) for name, kind in BATCHES.items()),
    *(Route(f"label_names={names}", FROM_2, stages=("evaluate", "predict"), why=NOT_1, collate=collate_with_labels,
            options={"label_names": names}) for names in ([], ["labels"])),
    Route("label smoothing", ALL, stages=BOTH, why=BY_MIXIN, by_mixin=True, collate=collate_with_labels,
          kinds=(Trainer, GuardedTrainer), without="clean", without_evaluating="leaks",
          options={"label_smoothing_factor": 0.1}),
    Route("compute_loss_func", ALL, stages=BOTH, why=BY_MIXIN, by_mixin=True, collate=collate_with_labels,
          kinds=(Trainer, GuardedTrainer), without="clean", without_evaluating="leaks",
          options={"compute_loss_func": next_token_loss}),
    Route("gradient accumulation", ALL, collate=collate_with_labels, options={"gradient_accumulation_steps": 2}),
    *(Route(f"PEFT {task}, handed bare to the Trainer", ONLY_5, why=AFTER_4, wrap=lora(task),
            stages=EVERY if task == "CAUSAL_LM" else BOTH) for task in TASKS),
    *(Route(f"PEFT {task}, inside a wrapper", ONLY_5, why=AFTER_4, wrap=wrapped(lora(task)))
      for task in TASKS),
    *(Route(f"PEFT {task}, outside a wrapper", ONLY_5, why=AFTER_4, wrap=around_wrapper(lora(task)))
      for task in TASKS),
    Route("PEFT without a task, bare", ALL, without="clean", stages=BOTH, wrap=lora(None)),
    Route("PEFT without a task, inside a wrapper", ALL, without="clean", wrap=wrapped(lora(None))),
    Route("PEFT without a task, outside a wrapper", ALL, without="clean", wrap=around_wrapper(lora(None))),
    Route("AdaLora CAUSAL_LM (calls `.forward`)", ONLY_5, why=AFTER_4, stages=BOTH, wrap=adalora),
    Route("`model.add_adapter`", ALL, without="clean", stages=BOTH, wrap=add_adapter),
    *(Route(f"pre-hook on the {where}, registered before the guard", ONLY_5, why=AFTER_4, stages=BOTH,
            wrap=hook(where)) for where in ("wrapper", "base")),
    *(Route(f"pre-hook on the {where}, registered after the guard", ONLY_5, why=AFTER_4, stages=BOTH, wrap=Wrapper,
            after=hook(where)) for where in ("wrapper", "base")),
    Route("the loss calls `.forward` with labels", ONLY_5, why=AFTER_4,
          edit=calling(lambda model, inputs: model.forward(**inputs, labels=inputs["input_ids"]))),
    Route("the loss passes labels by position", ONLY_5, why=AFTER_4, base=LabelsSecondLM, contract=LABELS_SECOND,
          edit=calling(lambda model, inputs: model(
              inputs["input_ids"], inputs["input_ids"], attention_mask=inputs["attention_mask"]))),
    Route("torch.compile around PEFT CAUSAL_LM", ONLY_5, why=AFTER_4, wrap=compiled),
    Route("gradient checkpointing, PEFT CAUSAL_LM", ONLY_5, why=AFTER_4, wrap=lora("CAUSAL_LM"),
          options={"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}),
    Route("mixed precision, PEFT CAUSAL_LM", ONLY_5, why=AFTER_4, stages=BOTH, wrap=lora("CAUSAL_LM"),
          options={"bf16": True}),
    Route("pre-hook after merge_and_unload", ONLY_5, why=AFTER_4, wrap=lambda model: hook("base")(merged(model))),
    Route("`num_items_in_batch` into a (**kwargs) wrapper", ALL, collate=collate_with_labels, wrap=Wrapper,
          kinds=(Trainer, GuardedTrainer), options={"compute_loss_func": next_token_loss},
          why=BY_MIXIN, by_mixin=True),
    Route("a subclass adds labels before training_step", ALL, edit=editing("training_step")),
    Route("a subclass adds labels before _prepare_inputs", FROM_2, stages=BOTH, edit=editing("_prepare_inputs"),
          why="it happens after layer 1"),
    Route("a subclass adds labels after _prepare_inputs", FROM_3, stages=BOTH, why="it happens after layer 2",
          edit=editing("_prepare_inputs", after=True)),
    Route("a callback adds labels before training_step", ALL,
          after=lambda trainer: trainer.add_callback(EditingCallback(trainer))),
]  # fmt: skip


def expected_cell(route: Route, stage: str, column: str) -> str:
    """What must happen on a route in a column."""
    evaluating = stage != "train"
    without = route.without_evaluating or route.without if evaluating else route.without
    if column == "none":
        return without
    stops = route.stops - {"1"} if evaluating else route.stops
    return "clean" if column == "all" or column in stops or route.by_mixin or without == "clean" else "leaks"
