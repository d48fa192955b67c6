"""The ledger: what each layer of the guard saw, what it diverted, and from whom; and the cascade table made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from label_guard.leak import LAYERS, Injector, Leak

SCHEMA = "higgs-trainer/guard-report/1"


@dataclass
class LayerRecord:
    """One layer's page. ``calls``: how often it ran; layer 5 counts only what it caught, see ``layers.py``."""

    on: bool = True
    calls: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    diverted: Counter[str] = field(default_factory=Counter)
    tensors: dict[str, dict[str, Any]] = field(default_factory=dict)


class Ledger:
    """What the guard saw of a run. ``tensors`` are those of the first batch, unless ``describe_next`` asks again."""

    def __init__(self, contract_name: str, policy: str, layers: frozenset[int]) -> None:
        self.contract_name = contract_name
        self.policy = policy
        self.layers = {number: LayerRecord(on=number in layers) for number in LAYERS}
        self.model_call: dict[str, dict[str, Any]] = {}
        self._leaks: dict[tuple[str, int, str], Leak] = {}

    @property
    def leaks(self) -> list[Leak]:
        """Every leak, one entry for a key at a layer from one injector, in the order in which they were met."""
        return list(self._leaks.values())

    def record_call(self, layer: int, batch: Mapping[str, Any]) -> None:
        """A batch passes a layer."""
        record = self.layers[layer]
        record.calls += 1
        record.seen.update(map(str, batch))
        if not record.tensors:
            record.tensors = {str(key): describe(value) for key, value in batch.items()}

    def record_diverted(self, layer: int, key: str) -> None:
        """A layer takes a key out of the batch or the call."""
        self.layers[layer].diverted[key] += 1

    def record_leak(self, layer: int, key: str, injector: Injector) -> tuple[Leak, bool]:
        """A leak is met. Returns it with its count so far, and whether it is the first from this injector."""
        place = (key, layer, injector.origin)
        if place in self._leaks:
            self._leaks[place].count += 1
            return self._leaks[place], False
        self._leaks[place] = Leak(key, layer, injector)
        return self._leaks[place], True

    def record_model_call(self, model_inputs: Mapping[str, Any]) -> None:
        """The verified parameters of the call to the model."""
        if not self.model_call:
            self.model_call = {key: describe(value) for key, value in model_inputs.items()}

    def describe_next(self) -> None:
        """Describe the tensors of the next batch anew."""
        self.model_call = {}
        for record in self.layers.values():
            record.tensors = {}

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """The cascade table's cells: layer, calls, keys seen, diverted, from whom."""
        rows = []
        for number, record in self.layers.items():
            calls = f"{record.calls} caught" if number == 5 else str(record.calls)
            taken = ", ".join(f"{key} x{count}" for key, count in record.diverted.items())
            sources = {leak.key: leak.injector.origin for leak in self.leaks if leak.layer == number}
            origins = "; ".join(f"{key} <- {origin}" for key, origin in sources.items())
            name = f"{number} {LAYERS[number]}" + ("" if record.on else " (off)")
            rows.append((name, calls, ", ".join(record.seen) or "-", taken or "-", origins or "-"))
        return rows

    def cascade(self) -> str:
        """The cascade table as plain text: the layers, the verified model call, and the verdict."""
        table = [("layer", "calls", "keys seen", "diverted", "from whom"), *self.rows()]
        widths = [max(len(row[column]) for row in table) for column in range(5)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        call = ", ".join(self.model_call) or "not called yet"
        lines += [f"{self.contract_name}.forward: {call}", self.verdict()]
        return "\n".join(line.rstrip() for line in lines)

    def verdict(self) -> str:
        """One line: whether anything got in, and how much was kept out."""
        if not self._leaks:
            return "clean: nothing but model inputs was put into a call"
        count = sum(leak.count for leak in self.leaks)
        injectors = {leak.injector.origin for leak in self.leaks}
        leaks = f"{count} leak{'s' if count > 1 else ''}"
        places = f"{len(injectors)} place{'s' if len(injectors) > 1 else ''}"
        return f"guarded: {leaks} from {places} stopped, none reached the model"

    def report(self) -> dict[str, Any]:
        """The ledger as plain data, for ``guard_report.json``.

        ::

            {"schema": "higgs-trainer/guard-report/1",
             "contract": name, "policy": "divert" | "raise", "verdict": line,
             "layers": [{"layer": 1..5, "name": str, "on": bool, "calls": int,
                         "seen": {key: count}, "diverted": {key: count},
                         "tensors": {key: {"device", "dtype", "shape"} | {"type"}}}],
             "model_call": {key: {"device", "dtype", "shape"} | {"type"}},
             "leaks": [{"key", "layer", "injector", "mend", "count"}]}

        ``calls`` of layer 5 counts the calls in which it caught something: a counter in the model's own ``forward``
        would cost time and break compilation.
        """
        return {
            "schema": SCHEMA,
            "contract": self.contract_name,
            "policy": self.policy,
            "verdict": self.verdict(),
            "layers": [
                {
                    "layer": number,
                    "name": LAYERS[number],
                    "on": record.on,
                    "calls": record.calls,
                    "seen": dict(record.seen),
                    "diverted": dict(record.diverted),
                    "tensors": record.tensors,
                }
                for number, record in self.layers.items()
            ],
            "model_call": self.model_call,
            "leaks": [
                {
                    "key": leak.key,
                    "layer": leak.layer,
                    "injector": leak.injector.origin,
                    "mend": leak.injector.mend,
                    "count": leak.count,
                }
                for leak in self.leaks
            ],
        }


def describe(value: Any) -> dict[str, Any]:
    """Device, dtype and shape of a tensor; the type of anything else."""
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return {"device": str(value.device), "dtype": dtype, "shape": list(value.shape)}
    return {"type": type(value).__name__}
