"""Find the code that put a key into a call, by walking the call stack outward. Runs only when there is a leak."""

from __future__ import annotations

import inspect
import os
import sys
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch.nn.modules import module as torch_module

from label_guard.leak import KeySource

# Finds the source of a key that came with a batch, given the functions on the stack that may have edited the batch.
FindBatchSource = Callable[[str, list[str]], KeySource]

_TORCH_CALL = torch_module.__file__
_TORCH = Path(torch.__file__).parent
# Code that only passes a call on: the guard itself and the compiler.
_PASSES_ON = (
    str(Path(__file__).parent) + os.sep,
    str(_TORCH / "_dynamo") + os.sep,
    str(_TORCH / "_compile.py"),
)

# Remedies for known sources: the key, or a part of the source's name, and the sentence.
REMEDIES = (
    (
        "peft/peft_model.py",
        "PEFT's task classes pass arguments of their own to any model: make the adapter with task_type=None",
    ),
    (
        "default_data_collator",
        "It renames label and label_ids to labels: use a collator of your own, or keep them for the loss",
    ),
    (
        "num_items_in_batch",
        "A (**kwargs) wrapper made Trainer pass it: set trainer.model_accepts_loss_kwargs = False",
    ),
    ("pre-hook", "Change the hook so that it does not add keyword arguments, or remove it"),
    (
        "from the collator",
        "Leave it out in the collator, or keep it for the loss: the guard passes it there",
    ),
    (
        "from the dataset",
        "Remove the column from the dataset, or keep it for the loss: the guard passes it there",
    ),
)


def find_call_source(
    key: str, value: Any, find_batch_source: FindBatchSource | None = None, *, by_position: bool = False
) -> KeySource:
    """Find the source of a key in a call: the outermost of the consecutive stack frames that hold the key.

    Args:
        key: the key to explain.
        value: its value.
        find_batch_source: asked when these frames end in a training loop, which only passed a batch on.
        by_position: whether the value came without its name, so that the value itself must be looked for.
    """
    frames = list(_iterate_frames())
    holders = list(takewhile(lambda frame: _holds(frame, key, value, by_position), frames))
    outermost = holders[-1] if holders else frames[0]
    if outermost.f_code.co_filename == _TORCH_CALL:
        return _make_source(_name_caller_or_hooks(frames, outermost, key), key)
    if find_batch_source is not None and _is_training_loop(outermost):
        editors = [
            frame for frame in holders if not _is_training_loop(frame) and _code_mentions(frame.f_code, key)
        ]
        return find_batch_source(key, [_name_frame(frame) for frame in editors])
    outward = frames[len(holders) :]
    if holders and outward and _only_received(outermost, key) and _code_mentions(outward[0].f_code, key):
        # The caller wrote the key into the call.
        outermost = outward[0]
    return _make_source(_name_frame(outermost), key)


def name_function(function: Any) -> str:
    """Name a function or callable object as ``name (file:line)``."""
    code = _read_code(function)
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return str(name) if code is None else f"{name} ({_name_place(code, code.co_firstlineno)})"


def mentions(function: Any, key: str) -> bool:
    """Whether a key is among the constants of a function's code, as in code that adds the key."""
    code = _read_code(function)
    return code is not None and _code_mentions(code, key)


def find_remedy(name: str, key: str = "") -> str:
    """Return the remedy for a known source, in one sentence; empty for an unknown one."""
    return next((remedy for part, remedy in REMEDIES if part == key or part in name), "")


def _read_code(function: Any) -> CodeType | None:
    """Return the code of a function, a method, or an object with ``__call__``."""
    code = getattr(function, "__code__", None) or getattr(
        vars(type(function)).get("__call__"), "__code__", None
    )
    return code if isinstance(code, CodeType) else None


def _make_source(name: str, key: str) -> KeySource:
    return KeySource(name, find_remedy(name, key))


def _iterate_frames() -> Iterator[FrameType]:
    """Iterate over the stack outward, without frames of the guard and of the compiler."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_PASSES_ON):
            yield frame
        frame = frame.f_back


def _holds(frame: FrameType, key: str, value: Any, by_position: bool) -> bool:
    """Whether a frame holds the key: as a variable, in a mapping or batch, or its value as a positional argument."""
    for name, local in list(frame.f_locals.items()):
        if name == key and local is value:
            return True
        if isinstance(local, (dict, UserDict)) and key in local and _looks_same(local[key], value):
            return True
        if value is not None and _has_field(local, key, value):
            return True
        if by_position and (
            local is value or (isinstance(local, tuple) and any(item is value for item in local))
        ):
            return True
    return False


def _has_field(local: Any, key: str, value: Any) -> bool:
    if isinstance(local, (Mapping, type, torch.nn.Module, torch.Tensor)) or not hasattr(local, "__dict__"):
        return False
    return key in vars(local) and _looks_same(vars(local)[key], value)


def _looks_same(left: Any, right: Any) -> bool:
    """Whether two values of a key may be the same. Shapes are compared, because moving a batch makes new tensors."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.shape == right.shape
    return left is right


def _is_training_loop(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).startswith(("transformers.trainer", "accelerate."))


def _only_received(frame: FrameType, key: str) -> bool:
    """Whether a frame received the key in its own ``**kwargs`` and its code does not mention it."""
    code = frame.f_code
    if not code.co_flags & inspect.CO_VARKEYWORDS or _code_mentions(code, key):
        return False
    index = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)
    return key in frame.f_locals.get(code.co_varnames[index], {})


def _name_caller_or_hooks(frames: list[FrameType], outermost: FrameType, key: str) -> str:
    """Name the code that added a key to torch's call of a module: a pre-hook, or else the caller."""
    outward = (
        frame for frame in frames[frames.index(outermost) :] if frame.f_code.co_filename != _TORCH_CALL
    )
    hooks = _name_hooks(outermost.f_locals.get("self"), key)
    if hooks and outermost.f_code.co_name != "_wrapped_call_impl":
        return hooks
    return _name_frame(next(outward, outermost))


def _name_hooks(module: Any, key: str) -> str:
    """Name the forward pre-hooks that may have added the key: those that mention it, or all if none does."""
    hooks = [
        *torch_module._global_forward_pre_hooks.values(),
        *getattr(module, "_forward_pre_hooks", {}).values(),
    ]
    suspects = [hook for hook in hooks if mentions(hook, key)] or hooks
    where = type(module).__name__
    return " or ".join(f"pre-hook {name_function(hook)} on {where}" for hook in suspects)


def _code_mentions(code: CodeType, key: str) -> bool:
    for constant in code.co_consts:
        if constant == key or (isinstance(constant, tuple) and key in constant):
            return True
        if isinstance(constant, CodeType) and _code_mentions(constant, key):
            return True
    return False


def _name_frame(frame: FrameType) -> str:
    code = frame.f_code
    # Python 3.10 has no co_qualname, so there the class of a method is not named.
    name = getattr(code, "co_qualname", code.co_name)
    return f"{name} ({_name_place(code, frame.f_lineno)})"


def _name_place(code: CodeType, line: int) -> str:
    """Return file and line. The path starts at the installed package, or at the working directory, or is absolute."""
    path = code.co_filename
    for root in ("site-packages" + os.sep, "dist-packages" + os.sep):
        if root in path:
            return f"{path.rpartition(root)[2]}:{line}"
    relative = os.path.relpath(path) if os.path.isabs(path) else path
    return f"{path if relative.startswith('..') else relative}:{line}"
