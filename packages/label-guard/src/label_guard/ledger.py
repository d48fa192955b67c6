"""Record what each layer of the guard saw, what it diverted and which code added it; print this as a table."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from label_guard.leak import LAYERS, PASSED, STOPPED, SWALLOWED, Leak

SCHEMA = "label-guard/report/1"


@dataclass
class LayerRecord:
    """The record of one layer.

    Attributes:
        on: whether the layer is on.
        batches: how many batches passed it, by the names of their keys. Layer 5 counts only calls in which it caught
            something.
        diverted: how often it diverted each key.
        tensors: a description of each value of the first batch.
    """

    on: bool = True
    batches: Counter[tuple[str, ...]] = field(default_factory=Counter)
    diverted: Counter[str] = field(default_factory=Counter)
    tensors: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        """How many batches passed the layer."""
        return sum(self.batches.values())

    @property
    def seen(self) -> Counter[str]:
        """How often the layer saw each key."""
        seen: Counter[str] = Counter()
        for names, count in self.batches.items():
            for name in names:
                seen[str(name)] += count
        return seen


@dataclass
class BoundaryRecord:
    """The record of one guarded ``forward``.

    Attributes:
        name: the class of its module.
        is_watched: whether a label is kept out of it; not so if it takes any key.
        hidden: a function that replaced the ``forward`` before it was guarded and calls the original; empty if there is
            none. What that function adds is not seen.
        was_called: whether it was called.
        is_base: whether the module is the base model.
    """

    name: str
    is_watched: bool
    hidden: str = ""
    was_called: bool = False
    is_base: bool = False

    def list_limits(self) -> list[str]:
        """Say what is not watched here."""
        limits = [] if self.is_watched else [f"{self.name}.forward, which takes any key (**kwargs)"]
        return limits + ([f"what {self.hidden} passes to {self.name}.forward"] if self.hidden else [])


class Ledger:
    """The record of everything that the guard saw during a run.

    Attributes:
        contract_name: the name of the contract.
        policy: ``"divert"``, ``"raise"`` or ``"watch"``.
        boundaries: the record of each guarded ``forward``.
        layers: the record of each layer, by its number.
        model_call: a description of each argument of the first call to the model.
        is_removed: whether a trainer took steps after layer 5 was removed.
    """

    def __init__(self, contract_name: str, policy: str, layers: frozenset[int]) -> None:
        self.contract_name = contract_name
        self.policy = policy
        self.boundaries: list[BoundaryRecord] = []
        self._lock = threading.Lock()
        self.layers = {number: LayerRecord(on=number in layers) for number in LAYERS}
        self.model_call: dict[str, dict[str, Any]] = {}
        self.is_removed = False
        self._leaks: dict[tuple[str, ...], Leak] = {}

    @property
    def leaks(self) -> list[Leak]:
        """The leaks so far, in the order in which they were found; one entry per key, layer and source."""
        return list(self._leaks.values())

    def record_call(self, layer: int, batch: Mapping[str, Any]) -> None:
        """Count a batch that passes a layer, and describe its values if it is the first."""
        record = self.layers[layer]
        with self._lock:
            record.batches[tuple(map(str, batch))] += 1
        if not record.tensors:
            record.tensors = {str(key): describe(value) for key, value in batch.items()}

    def record_diverted(self, layer: int, key: str) -> None:
        """Count a key that a layer removes from the batch or the call."""
        with self._lock:
            self.layers[layer].diverted[key] += 1

    def record_leak(self, leak: Leak) -> tuple[Leak, bool]:
        """Count a leak. Returns the leak with its count so far, and whether it is the first from this source."""
        entry = (leak.key, str(leak.layer), leak.source.name, leak.outcome, leak.model)
        with self._lock:
            known = self._leaks.setdefault(entry, leak)
            if known is not leak:
                known.count += 1
        return known, known is leak

    def record_model_call(self, model_inputs: Mapping[str, Any]) -> None:
        """Describe the arguments of the first call to the model."""
        if not self.model_call:
            self.model_call = {key: describe(value) for key, value in model_inputs.items()}

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Return the cells of the cascade table: layer, calls, keys seen, keys diverted, their sources.

        A layer that is off has no row.
        """
        rows = []
        for number, record in self.layers.items():
            if not record.on:
                continue
            layer = f"{number} {LAYERS[number]}"
            calls = f"{record.calls} caught" if number == 5 else str(record.calls)
            seen = ", ".join(record.seen)
            diverted = ", ".join(f"{key} x{count}" for key, count in record.diverted.items())
            # One source per key: the last.
            names = {leak.key: leak.source.name for leak in self.leaks if leak.layer == number}
            sources = "; ".join(f"{key} <- {name}" for key, name in names.items())
            rows.append((layer, calls, seen or "-", diverted or "-", sources or "-"))
        return rows

    def cascade(self) -> str:
        """Return the cascade table as plain text: the layers, the call to the model, and the verdict."""
        table = [("layer", "calls", "keys seen", "diverted", "source"), *self.rows()]
        widths = [max(len(row[column]) for row in table) for column in range(5)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        lines += [f"{self.contract_name}.forward: {self._describe_call()}", self.verdict()]
        return "\n".join(line.rstrip() for line in lines)

    def _describe_call(self) -> str:
        """Name the arguments of the first call to the base model; without an owner, say whether it was called."""
        if self.model_call:
            return ", ".join(self.model_call)
        if not self.layers[5].on:
            return "not watched"
        return (
            "called"
            if any(record.is_base and record.was_called for record in self.boundaries)
            else "not called"
        )

    def verdict(self) -> str:
        """Return one line that says what was watched, and what became of the leaks. It counts only what was called."""
        parts = [self._judge_leaks() or self._judge_clean()]
        parts += [f"not watched: {limit}" for limit in self.list_limits()]
        if unused := [record.name for record in self._watched if not record.was_called]:
            parts.append(f"not called: {', '.join(_count_names(Counter(unused)))}")
        return "; ".join(parts)

    def summary(self) -> str:
        """Return what to show at the end of a run: the verdict or, after a leak, the whole table."""
        return self.cascade() if self.leaks else f"guard: {self.verdict()}"

    def list_limits(self) -> list[str]:
        """Say what is not watched, each once."""
        limits = [limit for record in self.boundaries for limit in record.list_limits()]
        if not self.layers[5].on:
            limits.append("the calls of the model, because layer 5 is off")
        if self.is_removed:
            limits.append("the calls of the model since guard.remove()")
        return list(dict.fromkeys(limits))

    @property
    def _watched(self) -> list[BoundaryRecord]:
        return [record for record in self.boundaries if record.is_watched]

    def _judge_clean(self) -> str:
        called: Counter[str] = Counter(record.name for record in self._watched if record.was_called)
        if not called:
            return "nothing was watched: no forward that refuses a label was called"
        count, names = sum(called.values()), ", ".join(_count_names(called))
        watched = f"{count} {'boundary' if count == 1 else 'boundaries'} watched ({names})"
        return f"clean: {watched}, nothing but model inputs was put into a call"

    def _judge_leaks(self) -> str:
        """Say what became of the leaks; empty if there were none."""
        parts = []
        if stopped := [leak for leak in self.leaks if leak.outcome == STOPPED]:
            parts.append(f"guarded: {_count_leaks(stopped)} stopped, none reached the model")
        if passed := [leak for leak in self.leaks if leak.outcome == PASSED]:
            keys = ", ".join(dict.fromkeys(f"{leak.key!r} into {leak.model}.forward" for leak in passed))
            parts.append(f"not stopped: {_count_leaks(passed)}, {keys}")
        if swallowed := [leak for leak in self.leaks if leak.outcome == SWALLOWED]:
            keys = ", ".join(
                dict.fromkeys(f"{leak.key!r} reached {leak.model}.forward" for leak in swallowed)
            )
            parts.append(keys if stopped or passed else f"{self._judge_clean()}; {keys}")
        return "; ".join(parts)

    def report(self) -> dict[str, Any]:
        """Return the ledger as plain data that ``json.dumps`` takes.

        ::

            {"schema": "label-guard/report/1",
             "contract": name, "policy": "divert" | "raise" | "watch", "verdict": line,
             "layers": [{"layer": 1..5, "name": str, "on": bool, "calls": int,
                         "seen": {key: count}, "diverted": {key: count},
                         "tensors": {key: {"device", "dtype", "shape"} | {"type"}}}],
             "model_call": {key: {"device", "dtype", "shape"} | {"type"}},
             "boundaries": [{"name", "watched", "called", "not_watched": [str]}],
             "leaks": [{"key", "layer", "source", "remedy", "count", "outcome", "model", "first_layer"}]}

        ``calls`` of layer 5 counts the calls in which it caught something: a counter in the model's own ``forward``
        would cost time and break the graph of a compiled model.
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
            "boundaries": [
                {
                    "name": boundary.name,
                    "watched": boundary.is_watched,
                    "called": boundary.was_called,
                    "not_watched": boundary.list_limits(),
                }
                for boundary in self.boundaries
            ],
            "leaks": [
                {
                    "key": leak.key,
                    "layer": leak.layer,
                    "source": leak.source.name,
                    "remedy": leak.source.remedy,
                    "count": leak.count,
                    "outcome": leak.outcome,
                    "model": leak.model,
                    "first_layer": leak.first_layer,
                }
                for leak in self.leaks
            ],
        }


def _count_leaks(leaks: list[Leak]) -> str:
    count = sum(leak.count for leak in leaks)
    places = len({leak.source.name for leak in leaks})
    return f"{count} leak{'s' if count > 1 else ''} from {places} place{'s' if places > 1 else ''}"


def _count_names(names: Counter[str]) -> list[str]:
    """List names, each with how often it came if that is more than once."""
    return [name if count == 1 else f"{name} x{count}" for name, count in names.items()]


def describe(value: Any) -> dict[str, Any]:
    """Return the device, dtype and shape of a tensor, or the type of any other value."""
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return {"device": str(value.device), "dtype": dtype, "shape": list(value.shape)}
    return {"type": type(value).__name__}
