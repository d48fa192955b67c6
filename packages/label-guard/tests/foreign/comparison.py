"""Run a foreign trainer unguarded and guarded, and compare all that can be compared, bit for bit."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from unittest import mock

import accelerate
import numpy as np
import torch
import transformers
from datasets import Dataset
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from trainers import Case
from transformers import PreTrainedModel, Trainer

from label_guard import LabelGuardMixin, Leak
from label_guard.guarded_run import GuardedRun
from label_guard.launch import hook_trainers

# Figures that differ between two runs of the same script.
TIMES = ("runtime", "per_second", "step_time")
METHODS = ("training_step", "_prepare_inputs", "compute_loss", "prediction_step", "log")
PATCHED = {
    Trainer: ("__init__", "train", "evaluate", "predict"),
    accelerate.Accelerator: ("prepare", "prepare_model"),
}
LEAK = "emotion_labels"


@dataclass
class Outcome:
    """What a run leaves.

    Attributes:
        metrics: losses, gradient norms and other metrics of training and evaluation.
        weights: the final weights and buffers.
        calls: how often each class of modules was called, and how often the dataset was read.
        batches: the types and names of what the methods of the trainer received.
        columns: the columns of the dataset that the trainer keeps.
        rng: the states of the random generators of torch, numpy and Python.
    """

    metrics: list[dict[str, Any]]
    weights: dict[str, torch.Tensor]
    calls: Counter[str]
    batches: list[Any]
    columns: list[str] | None
    rng: tuple[Any, ...]

    def find_differences(self, other: Outcome) -> list[str]:
        """Return the names of the attributes that are not equal to the bit."""
        names = [field.name for field in fields(self)]
        return [name for name in names if not is_equal(getattr(self, name), getattr(other, name))]


def is_equal(left: Any, right: Any) -> bool:
    """Whether two nested structures have the same types and bits; NaN equals NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        same_kind = left.dtype == right.dtype and left.shape == right.shape
        return same_kind and left.detach().numpy().tobytes() == right.detach().numpy().tobytes()
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(is_equal(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(is_equal, left, right))
    if isinstance(left, np.ndarray):
        return left.tobytes() == right.tobytes()
    return bool(left == right) or (left != left and right != right)


def describe(value: Any) -> Any:
    """Return the type of an argument, with the types of its entries."""
    if isinstance(value, dict):
        return type(value).__name__, {key: describe(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [describe(entry) for entry in value]
    return type(value).__name__


def make_recorder(kind: type[Trainer], batches: list[Any]) -> type[Trainer]:
    """Return a subclass that records what the methods of a trainer receive."""

    def make_method(name: str) -> Any:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            batches.append((name, describe(args), describe(kwargs)))
            return getattr(super(recorder, self), name)(*args, **kwargs)

        return method

    recorder = type(kind.__name__, (kind,), {name: make_method(name) for name in METHODS})
    return recorder


@contextmanager
def counting(calls: Counter[str]) -> Iterator[None]:
    """Count the calls of all modules, and the reads of all datasets."""

    def count_call(module: nn.Module, *_: Any) -> None:
        calls[type(module).__name__] += 1

    def make_reader(name: str) -> Any:
        original = getattr(Dataset, name)

        def read(self: Dataset, *args: Any) -> Any:
            calls[f"Dataset.{name}"] += 1
            return original(self, *args)

        return read

    handle = register_module_forward_hook(count_call)
    with ExitStack() as stack:
        for name in ("__getitem__", "__getitems__"):
            stack.enter_context(mock.patch.object(Dataset, name, make_reader(name)))
        yield
    handle.remove()


@contextmanager
def launched(policy: str) -> Iterator[GuardedRun]:
    """Do what ``python -m label_guard`` does, until the end of the block."""
    with ExitStack() as stack:
        for kind, names in PATCHED.items():
            for name in names:
                stack.enter_context(mock.patch.object(kind, name, getattr(kind, name)))
        run = GuardedRun(policy)
        hook_trainers(run).remove()
        yield run


def add_leak(trainer: Any) -> None:
    """Let a forward pre-hook add a label that the model does not take."""

    def add_emotions(module: nn.Module, args: Any, kwargs: Any) -> Any:
        extra = {LEAK: torch.ones(1)}
        if args and isinstance(args[0], dict):
            # Sentence-transformers passes its batch on in one dict.
            return ({**args[0], **extra}, *args[1:]), kwargs
        return args, {**kwargs, **extra}

    models = [
        module for module in trainer.model.modules() if isinstance(module, (PreTrainedModel, Transformer))
    ]
    models[0].register_forward_pre_hook(add_emotions, with_kwargs=True)


def run_case(
    case: Case, lora: bool, folder: Path, guard: str = "", policy: str = "divert", leaks: bool = False
) -> tuple[Outcome, list[Leak]]:
    """Train and evaluate. ``guard`` is the way in which the trainer is guarded: none, ``mixin`` or ``launcher``."""
    batches: list[Any] = []
    calls: Counter[str] = Counter()
    kind = make_recorder(case.kind, batches)
    if guard == "mixin":
        kind = type(kind.__name__, (LabelGuardMixin, kind), {"guard_policy": policy})
    transformers.set_seed(1)
    with ExitStack() as stack:
        run = stack.enter_context(launched(policy)) if guard == "launcher" else None
        trainer = case.make(kind, folder, lora)
        if leaks:
            add_leak(trainer)
        stack.enter_context(counting(calls))
        trainer.train()
        trainer.evaluate()
    found = [leak for model in run.models for leak in model.ledger.leaks] if run else []
    if guard == "mixin":
        found = trainer.guard.leaks
    metrics = [
        {key: value for key, value in entry.items() if not any(part in key for part in TIMES)}
        for entry in trainer.state.log_history
    ]
    weights = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    rng = (torch.get_rng_state(), np.random.get_state(), random.getstate())
    return Outcome(metrics, weights, calls, batches, trainer._signature_columns, rng), found
