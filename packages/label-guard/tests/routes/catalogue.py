"""The routes by which a key gets into a model's call, each as real code, and the layers that stop it.

A route is run in each column of the table: ``none`` is the stock Trainer, ``1`` to ``5`` an owner with that layer
alone, ``all`` an owner with all five layers. ``observer 1-4`` is an observer whose layer 5 is off, ``observer 5`` one
with layer 5 alone. The model records the keys of each call and ignores those that it does not take, so that a leak is
recorded and the run continues.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, default_data_collator

from label_guard import Contract, LabelGuardMixin
from tiny_guarded import (
    BATCH_TYPES,
    GuardedTrainer,
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

COLUMNS: dict[str, frozenset[int] | None] = {
    "none": None,
    **{str(layer): frozenset({layer}) for layer in range(1, 6)},
    "all": frozenset({1, 2, 3, 4, 5}),
    "observer 1-4": frozenset({1, 2, 3, 4}),
    "observer 5": frozenset({5}),
}
Wrap = Callable[[nn.Module], nn.Module]
ALL, FROM_2, FROM_3, ONLY_5 = frozenset("12345"), frozenset("2345"), frozenset("345"), frozenset("5")
INPUTS = frozenset({"input_ids", "attention_mask"})


class RecordingLM(StrictLM):
    """A ``StrictLM`` that records the keys of each call and ignores those that ``StrictLM`` does not take."""

    calls: list[frozenset[str]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = dict(zip(TAKEN, args, strict=False)) | kwargs
        self.calls.append(frozenset(call))
        return super().forward(**{key: value for key, value in call.items() if key in TAKEN})

    def prepare_inputs_for_generation(self, *_: Any, **__: Any) -> None:
        """Do nothing; PEFT's task classes expect the method."""


TAKEN = tuple(inspect.signature(StrictLM.forward).parameters)[1:]
RecordingLM.forward.__signature__ = inspect.signature(StrictLM.forward)  # type: ignore[attr-defined]


class LabelsSecondLM(RecordingLM):
    """A model whose second positional parameter is ``labels``, so that labels can reach it without their name."""

    def forward(self, input_ids: Any = None, labels: Any = None, attention_mask: Any = None) -> Any:
        given = {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}
        return super().forward(**{key: value for key, value in given.items() if value is not None})


LABELS_SECOND = Contract("LabelsSecondLM", INPUTS, frozenset({"labels"}))


# Trainers whose loss needs no labels, so that a run without labels continues


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


class WatchedTrainer(LabelGuardMixin, PlainTrainer):
    """An observer: the same loss as the stock trainer's."""


@dataclass(frozen=True)
class Kinds:
    """The trainers of a route: the stock one, and the guarded one in each role."""

    stock: type[Trainer] = PlainTrainer
    owner: type[Trainer] = OwnLossTrainer
    observer: type[Trainer] = WatchedTrainer

    def choose(self, column: str) -> type[Trainer]:
        """Return the trainer of a column of the table."""
        if column == "none":
            return self.stock
        return self.observer if column.startswith("observer") else self.owner


# Trainers whose loss reads the labels, where transformers computes it.
READS_LABELS = Kinds(stock=Trainer, observer=GuardedTrainer)


@dataclass(frozen=True)
class Route:
    """A route: what is special about its batch, its model or its trainer, and the layers that stop it.

    Attributes:
        name: the name of the route in the table.
        stops: the layers that stop it alone in an owner. Those of 1 to 3 see it in an observer.
        without: what the stock Trainer does: ``leaks``, ``dies``, ``clean`` or ``loses ...``.
        without_evaluating: the same in evaluate and predict, if it differs there.
        why: why the other layers of an owner do not stop it.
        stages: the stages in which it is run.
        collate: the collator.
        wrap: wraps the model.
        kinds: the trainers.
        in_batch: whether the key that leaks is in the batch, where an observer sees it.
        edit: makes a subclass of the trainer that adds a key.
        after: called with the trainer after the guard is attached.
        base: the class of the model.
        contract: the contract of the model; None reads it from the signature.
        options: further options of ``make_trainer``.
    """

    name: str
    stops: frozenset[str]
    without: str = "leaks"
    without_evaluating: str = ""
    why: str = ""
    stages: tuple[str, ...] = ("train",)
    collate: Callable[[Any], Any] = collate_plain
    wrap: Wrap = lambda model: model
    kinds: Kinds = Kinds()
    in_batch: bool = True
    edit: Callable[[type[Trainer]], type[Trainer]] = lambda kind: kind
    after: Callable[[Any], None] = lambda trainer: None
    base: type[RecordingLM] = RecordingLM
    contract: Contract | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What happened on a route.

    Attributes:
        leaked: keys that reached the model although it does not take them.
        missing: inputs of the batch that did not reach the model.
        died: the error that ended the run, if one did.
        seen: the layers of an observer that saw what leaked.
    """

    leaked: frozenset[str]
    missing: frozenset[str]
    died: str = ""
    seen: tuple[int, ...] = ()

    @property
    def cell(self) -> str:
        if self.missing:
            return "loses " + ", ".join(sorted(self.missing))
        if self.leaked:
            return format_leak(self.seen)
        return "dies" if self.died else "clean"


def format_leak(seen: Iterable[object]) -> str:
    """Return the cell of a leak: which layers saw it."""
    layers = ", ".join(map(str, seen))
    return f"leaks, seen at {layers}" if layers else "leaks"


def run(route: Route, stage: str, column: str, folder: Path) -> Outcome:
    """Run a route in one stage and one column of the table."""
    layers = COLUMNS[column]
    base = make_model(route.base)
    base.calls = []
    options = {"compute_loss_func": None, "data_collator": route.collate, "max_steps": 1} | dict(
        route.options
    )
    kind = route.edit(route.kinds.choose(column))
    trainer = make_trainer(folder, route.wrap(base), kind=kind, guard_layers=layers, **options)
    if layers is not None:
        trainer.guard_contract = route.contract
        # Attach the guard before `after`, which may register hooks.
        trainer.guard.reattach(trainer.model)
    route.after(trainer)
    died = ""
    try:
        if stage == "train":
            trainer.train()
        else:
            trainer.evaluate() if stage == "evaluate" else trainer.predict(trainer.eval_dataset)
    except (TypeError, AttributeError, ValueError) as error:
        died = f"{type(error).__name__}: {error}"
    outcome = observe(base.calls, died)
    if not column.startswith("observer"):
        return outcome
    records = trainer.guard.ledger.layers
    seen = tuple(layer for layer in range(1, 5) if outcome.leaked & records[layer].seen.keys())
    return replace(outcome, seen=seen)


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


def batch_of(kind: Callable[[dict[str, Tensor]], Any]) -> Callable[[Any], Any]:
    return lambda rows: kind(collate_with_labels(rows))


BATCHES = {name: kind for name, kind in BATCH_TYPES.items() if name != "a dict"}

# Models


def lora(task: str | None) -> Wrap:
    return lambda model: get_peft_model(model, LoraConfig(task_type=task, target_modules=["c_attn"]))


def wrapped(wrap: Wrap) -> Wrap:
    return lambda model: KwargsWrapper(wrap(model))


def around_wrapper(wrap: Wrap) -> Wrap:
    return lambda model: wrap(KwargsWrapper(model))


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


# Code that edits the batch or the call


def hook(where: str) -> Callable[[Any], Any]:
    """Register a hook on the wrapper or the base of a model, or of a trainer's model."""

    def register(owner: Any) -> Any:
        model = owner if isinstance(owner, nn.Module) else owner.model
        wrapper = model if isinstance(model, KwargsWrapper) else KwargsWrapper(model)
        place = wrapper if where == "wrapper" else wrapper.model
        place.register_forward_pre_hook(add_labels, with_kwargs=True)
        return wrapper

    return register


def editing(method: str, *, after: bool = False) -> Callable[[type[Trainer]], type[Trainer]]:
    """Make a subclass that adds labels to the batch before, or after, a method of the trainer."""

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
    """Make a subclass whose loss calls the model in another way."""
    return lambda kind: type("Calling", (kind,), {"call": lambda self, model, inputs: call(model, inputs)})


class EditingCallback(TrainerCallback):
    """A callback that replaces ``training_step`` by a function that adds labels."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        stock = self.trainer.training_step
        self.trainer.training_step = lambda model, inputs, *rest: stock(model, label(inputs), *rest)


EVERY = ("train", "evaluate", "predict")
# Predict takes the same path as evaluate.
BOTH = ("train", "evaluate")
NOT_1 = "evaluate and predict do not run training_step"
AFTER_4 = "it is added to the call after layer 4"
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
    Route("label smoothing", ALL, stages=BOTH, why=NOT_1, collate=collate_with_labels,
          kinds=READS_LABELS, without="clean", without_evaluating="leaks",
          options={"label_smoothing_factor": 0.1}),
    Route("compute_loss_func", ALL, stages=BOTH, why=NOT_1, collate=collate_with_labels,
          kinds=READS_LABELS, without="clean", without_evaluating="leaks",
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
    *(Route(f"pre-hook on the {where}, registered after the guard", ONLY_5, why=AFTER_4, stages=BOTH,
            wrap=KwargsWrapper, after=hook(where)) for where in ("wrapper", "base")),
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
    Route("`num_items_in_batch` into a (**kwargs) wrapper", ALL, collate=collate_with_labels, wrap=KwargsWrapper,
          in_batch=False, kinds=READS_LABELS, options={"compute_loss_func": next_token_loss}),
    Route("a subclass adds labels before training_step", ALL, edit=editing("training_step")),
    Route("a subclass adds labels before _prepare_inputs", FROM_2, stages=BOTH, edit=editing("_prepare_inputs"),
          why="it is added after layer 1"),
    Route("a subclass adds labels after _prepare_inputs", FROM_3, stages=BOTH, why="it is added after layer 2",
          edit=editing("_prepare_inputs", after=True)),
    Route("a callback adds labels before training_step", ALL,
          after=lambda trainer: trainer.add_callback(EditingCallback(trainer))),
]  # fmt: skip


def expected_cell(route: Route, stage: str, column: str) -> str:
    """Return what must happen on a route in a column of the table."""
    evaluating = stage != "train"
    without = route.without_evaluating or route.without if evaluating else route.without
    if column == "none":
        return without
    stops = route.stops - {"1"} if evaluating else route.stops
    if column == "observer 1-4" and without == "leaks":
        # In evaluate and predict, Trainer computes a loss only where it knows the names of the labels.
        runs_loss = not evaluating or bool(route.options.get("label_names"))
        seeing = stops & set("123" if runs_loss else "12") if route.in_batch else ()
        return format_leak(sorted(seeing))
    if column.startswith("observer"):
        return "clean" if without == "leaks" else without
    return "clean" if column == "all" or column in stops or without == "clean" else "leaks"
