"""List the keys that a model takes, and split a batch accordingly.

``Contract.split`` is the only code that knows what a label is. Every layer of the guard calls it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from label_guard.boundaries import find_base, find_class
from label_guard.leak import LabelLeakError
from label_guard.names import TARGET_NAMES, is_label_like
from label_guard.signature import read_signature


class Split(NamedTuple):
    """The three parts of a batch.

    Attributes:
        model_inputs: the keys that the model gets.
        targets: the keys that the loss gets.
        metadata: the keys that neither of them gets.
    """

    model_inputs: dict[str, Any]
    targets: dict[str, Any]
    metadata: dict[str, Any]


class ModelInputs(dict[str, Any]):
    """A batch that a layer has split: a dict of the model inputs, with the rest in two attributes.

    Attributes:
        targets: the keys that were diverted to the loss.
        metadata: the keys that neither the model nor the loss gets.
    """

    def __init__(
        self,
        model_inputs: Mapping[str, Any],
        targets: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(model_inputs)
        self.targets = {} if targets is None else targets
        self.metadata = {} if metadata is None else metadata

    def __missing__(self, key: str) -> Any:
        if key in self.targets:
            raise KeyError(f"{key!r} was diverted to the loss: read inputs.targets[{key!r}]")
        raise KeyError(key)


@dataclass(frozen=True)
class Contract:
    """Which keys a model takes.

    A key may be both an input and a target: then the model and the loss each get it. An input is never removed.

    Attributes:
        name: the name of the contract in messages and reports.
        inputs: the keys that the model takes.
        targets: the keys that the loss takes.
        metadata: the keys that neither takes.
        logged_as: the name of the model in the log line ``Calling NAME with: ...``; empty means its class's name.
    """

    name: str
    inputs: frozenset[str]
    targets: frozenset[str]
    metadata: frozenset[str] = frozenset()
    logged_as: str = ""

    @classmethod
    def of(cls, model: nn.Module) -> Contract:
        """Read the contract from a model's own signature.

        The inputs are the parameters of the ``forward`` of the base model beneath any wrappers. The targets are the
        label-like names that it does not have.

        Raises:
            ValueError: the signature says nothing, because it ends in an untyped ``**kwargs``.
        """
        base = find_base(model)
        signature = read_signature(base)
        name = find_class(base).__name__
        if signature.is_open:
            raise ValueError(
                f"{name}.forward takes **kwargs, so its signature does not say what it takes. "
                f'Name its inputs: Contract("{name}", inputs=frozenset({{"input_ids", ...}}), '
                'targets=frozenset({"labels"})), and pass it as LabelGuard(model, contract) or set it as the attribute '
                f"guard_contract of the trainer. If {name} is a wrapper around the model, name the model: "
                "LabelGuard(model, base=...)"
            )
        inputs = signature.names
        if not signature.names_a_label:
            # The model computes no loss, so it takes none of the options of a loss either.
            inputs = frozenset(key for key in inputs if not is_label_like(key))
        return cls(name, inputs, TARGET_NAMES - inputs)

    def split(self, batch: Any) -> Split:
        """Split a batch into model inputs, targets and metadata.

        The batch may be a mapping, a dataclass, a named tuple, an object with attributes, or any of these nested under
        a key that the contract does not list. A label-like key that the contract does not list is a target. A target
        that is None is left out, because it means that there is none.

        Raises:
            LabelLeakError: the contract does not list a key, or a key comes twice with two different values.
        """
        split = Split({}, {}, {})
        for key, value in self._entries(batch):
            parts = [part for part, takes in zip(split, self._takers(key), strict=True) if takes]
            if not parts:
                raise LabelLeakError(
                    f"The contract does not list {key!r}. Remove it from the batch, or list it in the contract. {self}",
                    (key,),
                )
            for part in parts:
                if part is not split.targets or value is not None:
                    _add(part, key, value)
        return split

    def flatten(self, batch: Any) -> Mapping[str, Any]:
        """Return the batch as one flat mapping, or the batch itself if it already is one.

        Raises:
            LabelLeakError: a key comes twice with two different values.
        """
        if isinstance(batch, Mapping) and not any(
            self._is_nested(key, value) for key, value in batch.items()
        ):
            return batch
        flat: dict[str, Any] = {}
        for key, value in self._entries(batch):
            _add(flat, key, value)
        return flat

    def is_target(self, key: str) -> bool:
        """Whether a key goes to the loss."""
        return key in self.targets or (is_label_like(key) and key not in self.inputs | self.metadata)

    def is_shared(self, key: str) -> bool:
        """Whether a key is both an input of the model and a target."""
        return key in self.inputs and key in self.targets

    def _takers(self, key: str) -> tuple[bool, bool, bool]:
        return key in self.inputs, self.is_target(key), key in self.metadata

    def _entries(self, batch: Any) -> Iterator[tuple[str, Any]]:
        for key, value in read_fields(batch).items():
            if not isinstance(key, str):
                raise LabelLeakError(
                    f"the batch has a key that is not a string: {key!r}. Rename or remove it", (repr(key),)
                )
            if self._is_nested(key, value):
                yield from self._entries(value)
            else:
                yield key, value

    def _is_nested(self, key: Any, value: Any) -> bool:
        """Whether a value is a batch inside the batch: it has named fields, and the contract does not list its key.

        A mapping under the name of a target is a target, whatever it holds.
        """
        return isinstance(key, str) and not any(self._takers(key)) and _has_fields(value)

    def __str__(self) -> str:
        lists = {"inputs": self.inputs, "targets": self.targets, "metadata": self.metadata}
        listed = "; ".join(f"{name}: {', '.join(sorted(keys)) or 'none'}" for name, keys in lists.items())
        return f"{self.name} takes {listed}"


def read_fields(batch: Any) -> Mapping[str, Any]:
    """Return the named fields of a batch of any type.

    Raises:
        TypeError: it has no named fields, for example because it is a tensor or a list.
    """
    if isinstance(batch, Mapping):
        return batch
    if hasattr(batch, "_asdict"):
        named_tuple: dict[str, Any] = batch._asdict()
        return named_tuple
    found: dict[str, Any] = {}
    if is_dataclass(batch) and not isinstance(batch, type):
        found = {field.name: getattr(batch, field.name) for field in fields(batch)}
    if not isinstance(batch, (type, torch.Tensor, nn.Module)):
        found |= {name: value for name, value in getattr(batch, "__dict__", {}).items() if name[0] != "_"}
    if not found:
        raise TypeError(f"a batch must have named fields, and a {type(batch).__name__} has none. Use a dict")
    return found


def _has_fields(value: Any) -> bool:
    """Whether a value under a key of a batch is itself a batch: a mapping, dataclass, named tuple or plain object."""
    if isinstance(value, Mapping):
        return len(value) > 0
    if isinstance(value, (type, torch.Tensor, nn.Module)) or callable(value):
        return False
    return is_dataclass(value) or hasattr(value, "_asdict") or bool(getattr(value, "__dict__", None))


def _add(fields: dict[str, Any], key: str, value: Any) -> None:
    """Add a key to the fields of a batch. None is no value, so it yields to one."""
    held = fields.get(key)
    if held is not None and value is not None and not is_same(held, value):
        raise LabelLeakError(
            f"the batch holds {key!r} twice, with two different values. Remove one of them", (key,)
        )
    fields[key] = value if held is None else held


def is_same(left: Any, right: Any) -> bool:
    """Whether two values of a key are equal; tensors may be on different devices."""
    if left is right:
        return True
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.shape == right.shape and bool(torch.equal(left, right.to(left.device)))
    if type(left) is not type(right):
        return False
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(is_same, left, right))
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(is_same(left[key], right[key]) for key in left)
    equal = left == right
    return bool(equal.all() if hasattr(equal, "all") else equal)
