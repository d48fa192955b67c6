"""Find the code that put a key into a call, by walking the call stack outward. Runs only when there is a leak."""

from __future__ import annotations

import inspect
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import torch
from torch.nn.modules import module as torch_module

from label_guard.batch_source import find_batch_source as find_source_in_trainer
from label_guard.code_reading import (
    Evidence,
    Scope,
    find_method,
    name_place,
    qualify,
    read_use,
    read_variables,
)
from label_guard.frames import is_training_loop, iterate_frames, read_module_name
from label_guard.leak import KeySource
from label_guard.loader_source import find_loader, find_loader_suspects
from label_guard.remedies import find_remedy
from label_guard.suspect import Suspect, choose, judge, judge_scope

# Finds the source of a key that came with a batch, given a `Suspect` for each function on the stack that holds it.
FindBatchSource = Callable[[str, list[Any]], KeySource]

_TORCH_CALL = torch_module.__file__
_MISSING = object()


def find_call_source(
    key: str, value: Any, find_batch_source: FindBatchSource | None = None, *, by_position: bool = False
) -> KeySource:
    """Find the source of a key in a call: the outermost of the consecutive stack frames that hold the key.

    Args:
        key: the key to explain.
        value: its value.
        find_batch_source: asked when these frames end in a training loop, which only passed a batch on. If it is None,
            a trainer is looked for on the stack.
        by_position: whether the value came without its name, so that the value itself must be looked for.
    """
    frames = list(iterate_frames())
    holders = _find_holders(frames, key, value, by_position)
    if holders and is_training_loop(holders[-1]) and not _has_batch(holders[-1], key, value):
        # The loop has the key as a variable of its own, so a frame further in put it into the batch or the call.
        entries = [index for index, frame in enumerate(holders) if _has_batch(frame, key, value)]
        outermost = holders[entries[-1] if entries else -1]
    else:
        outermost = holders[-1] if holders else frames[0]
        find = find_batch_source or _find_trainer(frames)
        if is_training_loop(outermost) and find is not None:
            editors = [frame for frame in holders if not _passes_on(frame)]
            return find(key, [_judge_frame(frame, key) for frame in editors])
    holders = holders[: holders.index(outermost) + 1] if holders else []
    if outermost.f_code.co_filename == _TORCH_CALL:
        if hooks := _name_hooks(outermost, key, by_position):
            return _make_source(hooks, key)
        # The call has the key from its caller.
        outside = frames[frames.index(outermost) :]
        outermost = next((frame for frame in outside if frame.f_code.co_filename != _TORCH_CALL), outermost)
        return _add_loader([outermost], outermost, key)
    if read_module_name(outermost) == "accelerate.hooks":
        return _make_source(_name_accelerate_hooks(outermost, key), key)
    outward = frames[len(holders) :]
    if holders and outward and _only_received(outermost, key) and _mentions(outward[0], key):
        # The caller wrote the key into the call.
        outermost = outward[0]
    return _add_loader(holders, outermost, key)


def _make_source(name: str, key: str) -> KeySource:
    return KeySource(name, find_remedy(name, key))


# Frames


def _find_holders(frames: list[FrameType], key: str, value: Any, by_position: bool) -> list[FrameType]:
    """Return the consecutive frames, from the call outward, that hold the key.

    The compiler keeps values where they cannot be seen. So a frame of compiled code counts as holding the key if a
    frame further out does.
    """
    holders: list[FrameType] = []
    compiled: list[FrameType] = []
    for frame in frames:
        if _holds(frame, key, value, by_position):
            holders += [*compiled, frame]
            compiled = []
        elif _is_compiled(frame):
            compiled.append(frame)
        else:
            break
    return holders


def _is_compiled(frame: FrameType) -> bool:
    """Whether a frame runs code that torch.compile has made from a function."""
    names = frame.f_code.co_names
    return any(
        name.startswith(("__compiled_fn", "__resume_at", "__import_torch_dot__dynamo")) for name in names
    )


def _holds(frame: FrameType, key: str, value: Any, by_position: bool) -> bool:
    """Whether a frame holds the key: as a variable, in a mapping or batch, or its value as a positional argument."""
    values = frame.f_locals
    if values.get(key, _MISSING) is value or _has_batch(frame, key, value):
        return True
    return by_position and any(
        local is value or (isinstance(local, tuple) and any(item is value for item in local))
        for local in values.values()
    )


def _has_batch(frame: FrameType, key: str, value: Any) -> bool:
    """Whether a local variable of a frame, or an item of its ``*args``, is a mapping or an object with the key."""
    return any(
        _has_entry(local, key, value)
        or (isinstance(local, tuple) and any(_has_entry(item, key, value) for item in local))
        for local in list(frame.f_locals.values())
    )


def _has_entry(local: Any, key: str, value: Any) -> bool:
    if isinstance(local, (dict, UserDict)):
        return key in local and _looks_same(local[key], value)
    if value is None or isinstance(local, (Mapping, type, torch.nn.Module, torch.Tensor)):
        return False
    own = read_variables(local)
    return key in own and _looks_same(own[key], value)


def _looks_same(left: Any, right: Any) -> bool:
    """Whether two values of a key may be the same. Shapes are compared, because moving a batch makes new tensors."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.shape == right.shape
    return left is right


def _passes_on(frame: FrameType) -> bool:
    """Whether a frame only passes a call on."""
    return is_training_loop(frame) or read_module_name(frame).partition(".")[0] in ("torch", "accelerate")


def _only_received(frame: FrameType, key: str) -> bool:
    """Whether a frame received the key in its own ``**kwargs`` and its code does not mention it."""
    code = frame.f_code
    if not code.co_flags & inspect.CO_VARKEYWORDS or _mentions(frame, key):
        return False
    index = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)
    return key in frame.f_locals.get(code.co_varnames[index], {})


def _mentions(frame: FrameType, key: str) -> bool:
    return read_use(Scope.of_frame(frame), key).evidence >= Evidence.MENTIONS


def _name_frame(frame: FrameType) -> str:
    name = qualify(frame.f_code, Scope.of_frame(frame).owner)
    return f"{name} ({name_place(frame.f_code, frame.f_lineno)})"


def _judge_frame(frame: FrameType, key: str) -> Suspect:
    return judge_scope(Scope.of_frame(frame), key, _name_frame(frame))


# Hooks


def _name_hooks(frame: FrameType, key: str, by_position: bool) -> str:
    """Name the forward pre-hooks that may have added the key to torch's call of a module; empty if there are none.

    Only some hooks get the arguments by name. None has run yet in ``_wrapped_call_impl``.
    """
    if frame.f_code.co_name == "_wrapped_call_impl":
        return ""
    module = frame.f_locals.get("self")
    own = getattr(module, "_forward_pre_hooks", {})
    takes_names = getattr(module, "_forward_pre_hooks_with_kwargs", {})
    hooks = [hook for number, hook in own.items() if by_position or number in takes_names]
    if by_position:
        hooks += torch_module._global_forward_pre_hooks.values()
    where = f" on {type(module).__name__}"
    return _choose_names([judge(hook, key, "pre-hook") for hook in hooks], where)


def _name_accelerate_hooks(frame: FrameType, key: str) -> str:
    """Name the hooks of accelerate that may have added the key."""
    module = frame.f_locals.get("module")
    hook = read_variables(module).get("_hf_hook")
    methods = [find_method(hook, "pre_forward").__get__(hook) for hook in _iterate_hooks(hook)]
    where = f" on {type(module).__name__}"
    return _choose_names([judge(method, key, "accelerate hook") for method in methods], where)


def _iterate_hooks(hook: Any) -> Iterator[Any]:
    inner = read_variables(hook).get("hooks")
    if inner is None:
        yield hook
    else:
        for other in inner:
            yield from _iterate_hooks(other)


def _choose_names(suspects: list[Suspect], where: str) -> str:
    chosen = choose([lambda: suspects]) or suspects
    return " or ".join(f"{suspect.name}{where}" for suspect in chosen)


# Batches


def _find_trainer(frames: list[FrameType]) -> FindBatchSource | None:
    """Return what finds the source of a key in the batches of the trainer that is running, if there is one."""
    for frame in frames:
        trainer = frame.f_locals.get("self")
        if read_module_name(frame).startswith("transformers.trainer") and hasattr(
            trainer, "callback_handler"
        ):
            return lambda key, editors: find_source_in_trainer(trainer, key, editors)
    return None


def _add_loader(holders: list[FrameType], outermost: FrameType, key: str) -> KeySource:
    """Name the line that called the model, and the collator or the dataset if its batch came from a loader."""
    name = _name_frame(outermost)
    if not any(_mentions(frame, key) for frame in holders if not _passes_on(frame)):
        loaders = [find_loader(value) for value in outermost.f_locals.values()]
        suspects = [
            suspect
            for loader in loaders
            if loader is not None
            for suspect in find_loader_suspects(loader, key)
        ]
        names = [suspect.name for suspect in suspects if suspect.evidence >= Evidence.MENTIONS]
        if names:
            name += f", with a batch that already held it, from {' or from '.join(dict.fromkeys(names))}"
    return _make_source(name, key)
