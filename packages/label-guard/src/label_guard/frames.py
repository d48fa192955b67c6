"""Walk the call stack outward, without the frames of code that only passes a call on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch

_TORCH = Path(torch.__file__).parent
# Code that only passes a call on: the guard itself and the compiler.
PASSES_ON = (
    str(Path(__file__).parent) + os.sep,
    str(_TORCH / "_dynamo") + os.sep,
    str(_TORCH / "_compile.py"),
    # The compiler runs inside a wrapper that is defined here.
    str(_TORCH / "_utils_internal.py"),
)


def iterate_frames() -> Iterator[FrameType]:
    """Iterate over the stack outward, without frames of the guard and of the compiler."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(PASSES_ON):
            yield frame
        frame = frame.f_back


def read_module_name(frame: FrameType) -> str:
    """Return the name of the module whose code a frame runs."""
    return str(frame.f_globals.get("__name__", ""))


def is_training_loop(frame: FrameType) -> bool:
    """Whether a frame belongs to a training loop, which only passes a batch on."""
    name = read_module_name(frame)
    return name.startswith(("transformers.trainer", "accelerate.")) and name != "accelerate.hooks"
