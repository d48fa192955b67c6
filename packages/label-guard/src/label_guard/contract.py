"""What a model takes, and the one door through which a batch is split by it.

``Contract.split`` is the only code that knows what a label is; every layer of the guard calls it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from label_guard.base import class_of, find_base, read_signature
from label_guard.leak import LabelLeakError

# What only a loss reads, under the names that Hugging Face, PEFT and their collators use. A name that contains
# "label" or "target" counts too, so that a new one does not slip through.
TARGET_NAMES = frozenset(
    {
        "audio_labels",
        "end_positions",
        "label",
        "label_ids",
        "labels",
        "lm_labels",
        "next_sentence_label",
        "num_items_in_batch",
        "shift_labels",
        "start_positions",
        "target",
        "targets",
    }
)


def is_label_like(key: str) -> bool:
    """Whether a key is by its name meant for the loss and not for the model."""
    return key in TARGET_NAMES or "label" in key or "target" in key


class Split(NamedTuple):
    """A batch in its three parts: what the model may see, what only the loss may see, what neither sees."""

    model_inputs: dict[str, Any]
    targets: dict[str, Any]
    metadata: dict[str, Any]


class ModelInputs(dict[str, Any]):
    """A batch behind a layer: the dict holds what the model may see; targets and metadata travel beside it."""

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
    """The keys that a model takes (``inputs``), those for its loss (``targets``), and those for neither (``metadata``).

    A key may be both an input and a target: the model and the loss then each get it. An input is never removed.
    """

    name: str
    inputs: frozenset[str]
    targets: frozenset[str]
    metadata: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: nn.Module) -> Contract:
        """The contract that a model's own signature states.

        The base is looked for beneath wrappers. Its inputs are the parameters of its ``forward``; its targets are the
        label-like names that it does not have. Raises ``ValueError`` where the signature says nothing (``**kwargs``).
        """
        base = find_base(model)
        signature = read_signature(base)
        name = class_of(base).__name__
        if signature.open:
            raise ValueError(
                f"{name}.forward takes **kwargs, so its signature does not say what it takes. "
                f'Name its inputs: Contract("{name}", inputs=frozenset({{"input_ids", ...}}), '
                'targets=frozenset({"labels"})), as LabelGuard(model, contract) or as the attribute guard_contract of '
                "a trainer; or, if it is a wrapper around the model, name that: LabelGuard(model, base=...)"
            )
        inputs = signature.names
        if not any(map(is_label_like, signature.named)):
            inputs = frozenset(
                key for key in inputs if not is_label_like(key)
            )  # no loss inside: no loss options
        return cls(name, inputs, TARGET_NAMES - inputs)

    def split(self, batch: Any) -> Split:
        """Sort a batch into model inputs, targets and metadata.

        Any batch will do: a mapping, a dataclass, a named tuple, an object with attributes; and any of these nested
        under a key that the contract does not list. A label-like key that is in no list goes to the targets. A target
        that is None is left out: it says that there is none.

        Raises ``LabelLeakError`` naming the key when it is in no list, or when a key comes twice with two values.
        """
        split = Split({}, {}, {})
        for key, value in self._entries(batch):
            parts = [part for part, takes in zip(split, self._takers(key), strict=True) if takes]
            if not parts:
                raise LabelLeakError(f"{key!r} is in no list of the contract. {self}", (key,))
            for part in parts:
                if part is split.targets and value is None:
                    continue
                if key in part and not is_same(part[key], value):
                    raise LabelLeakError(f"the batch holds {key!r} twice, with two different values", (key,))
                part[key] = value
        return split

    def flatten(self, batch: Any) -> Mapping[str, Any]:
        """The batch as one mapping: itself where it already is one, without anything nested."""
        if isinstance(batch, Mapping) and not any(self._is_nest(key, value) for key, value in batch.items()):
            return batch
        return dict(self._entries(batch))

    def is_target(self, key: str) -> bool:
        """Whether the loss may see a key and the model may not."""
        return key in self.targets or (is_label_like(key) and key not in self.inputs | self.metadata)

    def is_shared(self, key: str) -> bool:
        """Whether the model and the loss each take a key."""
        return key in self.inputs and key in self.targets

    def _takers(self, key: str) -> tuple[bool, bool, bool]:
        return key in self.inputs, self.is_target(key), key in self.metadata

    def _entries(self, batch: Any) -> Iterator[tuple[str, Any]]:
        for key, value in read_fields(batch).items():
            if not isinstance(key, str):
                raise LabelLeakError(f"the batch has a key that is not a string: {key!r}", (repr(key),))
            if self._is_nest(key, value):
                yield from self._entries(value)
            else:
                yield key, value

    def _is_nest(self, key: Any, value: Any) -> bool:
        """Whether a value is a batch within the batch: it has keys, and its own key means nothing to the contract.

        A mapping under a target's name (``targets``) is one too where the contract knows every key in it.
        """
        has_keys = len(value) > 0 if isinstance(value, Mapping) else is_dataclass(value)
        if not has_keys or not isinstance(key, str):
            return False
        takers = self._takers(key)
        return not any(takers) or (
            takers == (False, True, False) and all(map(self._knows, read_fields(value)))
        )

    def _knows(self, key: Any) -> bool:
        return isinstance(key, str) and any(self._takers(key))

    def __str__(self) -> str:
        lists = {"inputs": self.inputs, "targets": self.targets, "metadata": self.metadata}
        listed = "; ".join(f"{name}: {', '.join(sorted(keys)) or 'none'}" for name, keys in lists.items())
        return f"{self.name} takes {listed}"


def read_fields(batch: Any) -> Mapping[str, Any]:
    """The named fields of a batch of any type. Raises ``TypeError`` for what has none (a tensor, a list)."""
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
        raise TypeError(
            f"a batch must have named fields; this one is a {type(batch).__name__}, which has none"
        )
    return found


def is_same(left: Any, right: Any) -> bool:
    """Whether two values of one key are the same, on whatever device they lie."""
    if left is right:
        return True
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.shape == right.shape and bool(torch.equal(left, right.to(left.device)))
    if isinstance(left, torch.Tensor) or isinstance(right, torch.Tensor):
        return False
    return bool(left == right)
