"""Find the source of a key in a trainer's batch: the dataset, the collator, or code that edited the batch later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import FrameType, FunctionType, GeneratorType, MethodType
from typing import TYPE_CHECKING, Any

from label_guard.code_reading import find_scopes, is_followed, read_variables
from label_guard.contract import read_fields
from label_guard.frames import is_training_loop, iterate_frames
from label_guard.leak import KeySource
from label_guard.loader_source import find_loader, find_loader_suspects
from label_guard.remedies import find_remedy
from label_guard.suspect import Suspect, choose, join_names, judge, judge_scope

if TYPE_CHECKING:
    from transformers import Trainer

# The methods of a trainer through which a batch passes.
BATCH_METHODS = (
    "get_batch_samples",
    "training_step",
    "prediction_step",
    "_prepare_inputs",
    "_prepare_input",
    "compute_loss",
    "compute_guarded_loss",
)

# The local variables of Trainer's loops that hold a loader. The first marks the training loop, the second the
# evaluation loop. The others hold the loader of a training loop whose `epoch_iterator` does not lead to it.
LOADER_VARIABLES = ("epoch_iterator", "dataloader", "epoch_dataloader", "train_dataloader")


def find_batch_source(
    trainer: Trainer, key: str, editors: Sequence[Any] = (), *, loaded: bool | None = None
) -> KeySource:
    """Find the source of a key that a trainer's batch holds. Neither the dataset nor its loader is read.

    Args:
        trainer: the trainer whose batch it is.
        key: the key to explain.
        editors: a ``Suspect`` for each function on the call stack that holds the batch, from ``find_call_source``.
        loaded: whether the batch held the key when it came from the loader; None if that is not known.
    """
    loop = _find_loop()
    held = None if loop is None else _look_at_next_batch(loop, key)
    loaded = loaded if held is None else held
    loader = _find_loader(loop, trainer)
    from_loader = [] if loaded is False or loader is None else find_loader_suspects(loader, key)
    if loaded:
        name = f"already in the batch, from {_join_origins(from_loader) or 'the dataset or the collator'}"
        return KeySource(name, find_remedy(name, key))
    stages = (
        lambda: list(editors),
        lambda: _judge_methods(trainer, key),
        lambda: _judge_callbacks(trainer, key),
    )
    edited = choose(stages)
    if loaded is False:
        name = join_names(edited or editors) or "code that edited the batch in place"
        return KeySource(name, "The batch did not hold it when it was loaded")
    return _choose_either(from_loader, edited, key)


def _choose_either(from_loader: list[Suspect], edited: list[Suspect], key: str) -> KeySource:
    """Name the source where it is not known whether the batch already held the key when it was loaded."""
    strongest = max((suspect.evidence for suspect in (*from_loader, *edited)), default=None)
    named = [suspect for suspect in edited if suspect.evidence == strongest] if strongest else []
    origins = [suspect for suspect in from_loader if suspect.evidence == strongest]
    parts = [f"already in the batch, from {_join_origins(origins)}"] if origins else []
    parts += [join_names(named)] if named else []
    if not strongest:
        parts.append("code that edited the batch in place")
    name = " or ".join(parts)
    return KeySource(name, find_remedy(name, key))


def _join_origins(suspects: Sequence[Suspect]) -> str:
    return " or from ".join(suspect.name for suspect in suspects)


# The loader


def _find_loop() -> FrameType | None:
    """Return the frame of the innermost loop over batches: evaluation may run inside training."""
    for frame in iterate_frames():
        if is_training_loop(frame) and any(name in frame.f_locals for name in LOADER_VARIABLES[:2]):
            return frame
    return None


def _find_loader(loop: FrameType | None, trainer: Trainer) -> Any:
    """Return the loader in use: a local variable of the loop over batches, or what the trainer keeps for callbacks."""
    values = {} if loop is None else loop.f_locals
    loaders = (find_loader(values.get(name)) for name in LOADER_VARIABLES)
    if (loader := next((loader for loader in loaders if loader is not None), None)) is not None:
        return loader
    handler = read_variables(trainer).get("callback_handler")
    is_training = getattr(trainer.model, "training", False)
    return find_loader(getattr(handler, "train_dataloader" if is_training else "eval_dataloader", None))


def _look_at_next_batch(loop: FrameType, key: str) -> bool | None:
    """Whether the next batch, which was loaded ahead and has not been used, holds a key; None if there is none.

    Accelerate's loader is one batch ahead. With gradient accumulation, Trainer loads the batches of a step ahead.
    """
    values = loop.f_locals
    iterator = values.get("epoch_iterator")
    if isinstance(iterator, GeneratorType) and iterator.gi_frame is not None:
        ahead = iterator.gi_frame.f_locals
        following = ahead.get("next_batch")
        if following is not None and following is not ahead.get("current_batch"):
            return _has_key(following, key)
    samples = values.get("batch_samples")
    if isinstance(samples, list) and samples and samples[-1] is not values.get("inputs"):
        return _has_key(samples[-1], key)
    return None


def _has_key(batch: Any, key: str) -> bool | None:
    """Whether a batch of any type has a field; also in a batch inside the batch."""
    try:
        fields = read_fields(batch)
    except TypeError:
        return None
    return key in fields or any(isinstance(value, Mapping) and key in value for value in fields.values())


# Code that edits a batch


def _judge_methods(trainer: Trainer, key: str) -> list[Suspect]:
    """Judge the methods through which a batch passes: those of the user's classes, and those set on the instance."""
    own = read_variables(trainer)
    patched = [own[name] for name in BATCH_METHODS if callable(own.get(name))]
    suspects = [judge(function, key) for function in patched]
    for kind in type(trainer).__mro__:
        if is_followed(kind.__module__):
            methods = [vars(kind)[name] for name in BATCH_METHODS if name in vars(kind)]
            suspects += [
                judge_scope(replace(scope, owner=scope.owner or trainer), key)
                for method in methods
                for scope in find_scopes(method)
            ]
    return suspects


def _judge_callbacks(trainer: Trainer, key: str) -> list[Suspect]:
    handler = read_variables(trainer).get("callback_handler")
    suspects = []
    for callback in read_variables(handler).get("callbacks", ()):
        kind = type(callback)
        if is_followed(kind.__module__) and not kind.__module__.startswith("transformers."):
            methods = [method for method in vars(kind).values() if isinstance(method, FunctionType)]
            suspects += [judge(MethodType(method, callback), key) for method in methods]
    return suspects
