"""What the guard of a trainer keeps of one step: which keys the batch held, and what was diverted from it."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from label_guard.contract import ModelInputs


@dataclass
class Step:
    """One step of a trainer.

    Attributes:
        loaded: the keys of its batches as they came from the dataloader.
        seen: the layers at which its batch held each key, the first one only.
        split: how the last layer split its batch; None in the observer role.
    """

    loaded: frozenset[str] = frozenset()
    seen: dict[str, int] = field(default_factory=dict)
    split: ModelInputs | None = None

    def record(self, layer: int, names: Iterable[str]) -> None:
        """Record the keys of the batch at a layer."""
        for key in names:
            self.seen.setdefault(key, layer)


def list_names(batch: Any) -> tuple[str, ...]:
    """Return the names of the fields of a batch, without reading a value; none if it has no named fields."""
    if isinstance(batch, (dict, UserDict, Mapping)):
        return tuple([key for key in batch if isinstance(key, str)])
    # A named tuple has no variables of its own.
    return getattr(batch, "_fields", None) or tuple(getattr(batch, "__dict__", ()))
