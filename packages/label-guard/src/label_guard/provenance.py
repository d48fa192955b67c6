"""Who put a key into a call: found by walking the frames outward, only when a leak was found."""

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

from label_guard.leak import Injector

# Asked about a key that came with the batch, with the code on its way that may have edited the batch in place.
BatchOrigin = Callable[[str, list[str]], Injector]

_HERE = str(Path(__file__).parent)
_TORCH_CALL = torch_module.__file__
_TORCH = Path(torch.__file__).parent
_TRANSPARENT = (
    _HERE,
    str(_TORCH / "_dynamo"),
    str(_TORCH / "_compile.py"),
)  # frames that only pass a call on

# The mend for the culprits that are known: part of the origin's text, and the sentence.
MENDS = (
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
    ("pre-hook", "Let the hook leave the keyword arguments as they are, or remove it"),
    ("from the collator", "Let the collator leave it out, or keep it for the loss: the guard hands it there"),
    (
        "from the dataset",
        "Remove the column from the dataset, or keep it for the loss: the guard hands it there",
    ),
)


def find_injector(
    key: str, value: Any, batch_origin: BatchOrigin | None = None, *, by_position: bool = False
) -> Injector:
    """The injector of a key: the outermost frame of the unbroken chain of frames that hold it.

    ``batch_origin`` is asked when the chain ends in a loop that only handed a batch on. ``by_position``: the value came
    without its name, so the value itself is followed.
    """
    frames = list(_frames_outside())
    holders = list(takewhile(lambda frame: _holds(frame, key, value, by_position), frames))
    outermost = holders[-1] if holders else frames[0]
    if outermost.f_code.co_filename == _TORCH_CALL:
        return _injector(_name_caller_or_hooks(frames, outermost, key), key)
    if batch_origin is not None and _is_loop(outermost):
        editors = [frame for frame in holders if not _is_loop(frame) and _code_mentions(frame.f_code, key)]
        return batch_origin(key, [_name_frame(frame) for frame in editors])
    outward = frames[len(holders) :]
    if holders and outward and _only_received(outermost, key) and _code_mentions(outward[0].f_code, key):
        outermost = outward[0]  # it wrote the key into the call
    return _injector(_name_frame(outermost), key)


def name_function(function: Any) -> str:
    """A function or callable object as ``name (file:line)``."""
    code = _code_of(function)
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return str(name) if code is None else f"{name} ({_place(code, code.co_firstlineno)})"


def mentions(function: Any, key: str) -> bool:
    """Whether a function's code has a key among its constants: how one that adds it is told apart."""
    code = _code_of(function)
    return code is not None and _code_mentions(code, key)


def _code_of(function: Any) -> CodeType | None:
    """The code of a function, a method, or an object that is called like one."""
    code = getattr(function, "__code__", None) or getattr(
        vars(type(function)).get("__call__"), "__code__", None
    )
    return code if isinstance(code, CodeType) else None


def mend_of(origin: str, key: str = "") -> str:
    """The mend for a known culprit, in one sentence; empty for an unknown one."""
    return next((mend for part, mend in MENDS if part == key or part in origin), "")


def _injector(origin: str, key: str) -> Injector:
    return Injector(origin, mend_of(origin, key))


def _frames_outside() -> Iterator[FrameType]:
    """The frames outward from the guard, without the guard's own and those of the compiler."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_TRANSPARENT):
            yield frame
        frame = frame.f_back


def _holds(frame: FrameType, key: str, value: Any, by_position: bool) -> bool:
    """Whether a frame has the key: as a variable of that name, in a mapping or batch, or its value by position."""
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
    """Whether two values of a key may be one: a batch that was moved to a device has new tensors."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.shape == right.shape
    return left is right


def _is_loop(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).startswith(("transformers.trainer", "accelerate."))


def _only_received(frame: FrameType, key: str) -> bool:
    """Whether a frame got the key in its own ``**kwargs`` and its code does not know of it."""
    code = frame.f_code
    if not code.co_flags & inspect.CO_VARKEYWORDS or _code_mentions(code, key):
        return False
    place = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)
    return key in frame.f_locals.get(code.co_varnames[place], {})


def _name_caller_or_hooks(frames: list[FrameType], outermost: FrameType, key: str) -> str:
    """The chain ends in torch's call of a module: its caller wrote the key into the call, or a pre-hook added it."""
    outward = (
        frame for frame in frames[frames.index(outermost) :] if frame.f_code.co_filename != _TORCH_CALL
    )
    hooks = _name_hooks(outermost.f_locals.get("self"), key)
    if hooks and outermost.f_code.co_name != "_wrapped_call_impl":
        return hooks
    return _name_frame(next(outward, outermost))


def _name_hooks(module: Any, key: str) -> str:
    """The forward pre-hooks that can have put the key there: those that mention it, else all."""
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
    name = getattr(code, "co_qualname", code.co_name)  # Python 3.11 has the class in it
    return f"{name} ({_place(code, frame.f_lineno)})"


def _place(code: CodeType, line: int) -> str:
    """A file as it is known to its readers: from its package on, or from the working directory."""
    path = code.co_filename
    for root in ("site-packages" + os.sep, "dist-packages" + os.sep):
        if root in path:
            return f"{path.rpartition(root)[2]}:{line}"
    inside = os.path.relpath(path) if os.path.isabs(path) else path
    return f"{path if inside.startswith('..') else inside}:{line}"
