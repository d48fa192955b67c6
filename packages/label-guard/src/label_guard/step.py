"""What the guard of a trainer keeps of one step: which keys the batch held, and what was diverted from it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from label_guard.contract import ModelInputs


@dataclass(slots=True)
class Step:
    """One step of a trainer.

    Attributes:
        loaded: the keys of its batches as they came from the dataloader.
        names: the keys of its batch at each layer.
        split: how the last layer split its batch; None in the observer role.
    """

    loaded: Collection[str] = ()
    names: dict[int, tuple[str, ...]] = field(default_factory=dict)
    split: ModelInputs | None = None

    def find_first_layer(self, key: str, layers: Collection[int]) -> int:
        """Return the first of some layers at which the batch held a key; 0 if it never did."""
        return min((layer for layer in layers if key in self.names.get(layer, ())), default=0)


def list_names(batch: Any) -> tuple[str, ...]:
    """Return the names of the fields of a batch, without reading a value; none if it has no named fields."""
    if type(batch) is dict:
        return tuple(batch)
    if isinstance(batch, Mapping):
        return tuple(batch)
    # A named tuple has no variables of its own.
    return getattr(batch, "_fields", None) or tuple(getattr(batch, "__dict__", ()))
