"""Run a script or a module in this process as Python itself would."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from types import ModuleType


def run_script(path: str, arguments: Sequence[str]) -> None:
    """Run a file as ``python PATH ARGUMENTS`` would: as ``__main__``, with its own ``sys.argv`` and ``sys.path[0]``.

    ``runpy.run_path`` would make ``sys.argv[0]`` and ``__file__`` the same path, and would put the old ``__main__``
    back while threads of the script still run.
    """
    sys.argv = [path, *arguments]
    # With `python -P` (3.11), Python adds no folder of its own to the path.
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    file = os.path.abspath(path)
    loader = SourceFileLoader("__main__", file)
    main = sys.modules["__main__"] = ModuleType("__main__")
    main.__file__, main.__loader__, main.__cached__ = file, loader, None  # type: ignore[attr-defined]
    exec(loader.source_to_code(loader.get_data(file), file), vars(main))


def run_module(name: str, arguments: Sequence[str]) -> None:
    """Run a module as ``python -m NAME ARGUMENTS`` would."""
    # runpy puts the file of the module in place of the name.
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)
