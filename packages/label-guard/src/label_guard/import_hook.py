"""Run a function on a module as soon as a script has imported it, without importing it earlier."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Patch = Callable[[ModuleType], None]


class ImportHook(MetaPathFinder):
    """Find some modules as Python would, and patch each of them after it was executed.

    Args:
        patches: the function for each module, by the module's full name.
    """

    def __init__(self, patches: Mapping[str, Patch]) -> None:
        self.patches = patches

    def install(self) -> None:
        """Patch the modules that are imported already, and all others when they are."""
        sys.meta_path.insert(0, self)
        for name, patch in self.patches.items():
            if name in sys.modules:
                patch(sys.modules[name])

    def remove(self) -> None:
        """Patch no further modules."""
        sys.meta_path.remove(self)

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec that the other finders find for one of the modules; None for any other module."""
        if fullname not in self.patches:
            return None
        finders = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        specs = (finder.find_spec(fullname, path, target) for finder in finders)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            _patch_after_execution(spec.loader, self.patches[fullname])
        return spec


def _patch_after_execution(loader: Any, patch: Patch) -> None:
    """Let one loader patch the module that it executes. Afterwards the loader is as it was."""

    def exec_module(module: ModuleType) -> None:
        del loader.exec_module
        loader.exec_module(module)
        patch(module)

    loader.exec_module = exec_module
