"""What the guard does while ``torch.compile`` traces a call that contains a leak."""

from __future__ import annotations

import linecache
import re
import sys
from collections.abc import Callable, Iterator
from traceback import FrameSummary
from typing import Any, TypeVar

import torch

from label_guard.code_reading import shorten_path
from label_guard.frames import PASSES_ON
from label_guard.leak import KeySource
from label_guard.remedies import find_remedy

# How many lines below its first line a call may name a key.
LINES_OF_A_CALL = 20

Function = TypeVar("Function", bound=Callable[..., Any])


def run_when_traced(function: Function) -> Function:
    """Let Dynamo run a function while it traces, and use its result as a constant of the graph.

    This is ``torch.compiler.assume_constant_result``, which would import the compiler.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def must_stay_in_graph() -> bool:
    """Whether the code that is being traced must be one graph, so that a leak cannot be caught outside it."""
    frame = sys._getframe(1)
    while frame is not None:
        translator = frame.f_locals.get("self")
        if getattr(type(translator), "__module__", "").startswith("torch._dynamo") and getattr(
            translator, "one_graph", False
        ):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def find_traced_source(key: str) -> KeySource | None:
    """Find the frame of the traced code that put a key into the call; None if it came from code that is not traced."""
    for frame in reversed(list(_iterate_traced_frames())):
        first = frame.lineno or 0
        lines = (linecache.getline(frame.filename, first + offset) for offset in range(LINES_OF_A_CALL))
        if any(re.search(rf"\b{re.escape(key)}\b", line) for line in lines):
            name = f"{frame.name} ({shorten_path(frame.filename)}:{frame.lineno})"
            return KeySource(name, find_remedy(name, key))
    return None


def _iterate_traced_frames() -> Iterator[FrameSummary]:
    passes_on = (*PASSES_ON, torch.nn.modules.module.__file__)
    for frame in torch._guards.TracingContext.extract_stack():
        if not frame.filename.startswith(passes_on):
            yield frame
