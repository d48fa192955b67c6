"""Guard one model in five layers.

    Trainer -> Layer 1 training_step -> Layer 2 _prepare_inputs -> Layer 3 compute_loss
            -> Layer 4 model inputs -> Layer 5 forward -> the base model: clean inputs

``LabelGuard`` is layer 5 at each boundary of the model (``boundaries.py``, ``watched.py``) and holds what the layers
share. ``mixin.py`` adds layers 1 to 4 to a ``Trainer``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from label_guard.boundaries import find_base, find_boundaries, find_class
from label_guard.call_source import FindBatchSource, find_call_source
from label_guard.contract import Contract, ModelInputs, Split, is_same
from label_guard.copies import Blueprint
from label_guard.leak import LAYERS, PASSED, POLICIES, STOPPED, SWALLOWED, KeySource, LabelLeakError, Leak
from label_guard.ledger import Ledger
from label_guard.names import is_label_like
from label_guard.step import Step
from label_guard.watched import WatchedForward

logger = logging.getLogger("label_guard")

ALL_LAYERS = frozenset(LAYERS)


class CallState(threading.local):
    """What the calls of one thread diverted.

    Attributes:
        targets: what the last call diverted, or the targets of the loss that is being computed.
        is_collecting: whether a loss is being computed.
        sources: the source of each target.
        caught_at: the boundaries at which the last call was caught.
    """

    def __init__(self) -> None:
        self.targets: dict[str, Any] = {}
        self.is_collecting = False
        self.sources: dict[str, str] = {}
        self.caught_at: set[object] = set()


class LabelGuard:
    """Keep keys that a model's contract does not list out of the ``forward`` of its base model.

    In a training loop without a Trainer, ``guard.pop_targets()`` after a call returns what was diverted from it.

    Args:
        model: the model, wrapped or not. The base model is found beneath PEFT, DDP, FSDP, compile and plain wrappers.
        contract: what the base model takes; by default what its signature says.
        base: the base model, if it cannot be found automatically.
        policy: ``"divert"`` moves a label to the targets; ``"raise"`` raises at the first leak; ``"watch"`` changes
            nothing, and only names the sources.
        layers: the layers that are on.
        expected: targets that a batch is meant to hold. They are split off and not reported as a leak. In a *call* to
            the model they are a leak.
    """

    def __init__(
        self,
        model: nn.Module,
        contract: Contract | None = None,
        *,
        base: nn.Module | None = None,
        policy: str = "divert",
        layers: frozenset[int] = ALL_LAYERS,
        expected: frozenset[str] = frozenset(),
    ) -> None:
        if policy not in POLICIES:
            raise ValueError(f"policy is {policy!r}; it must be one of {', '.join(map(repr, POLICIES))}")
        if unknown := set(layers) - ALL_LAYERS:
            raise ValueError(f"there is no layer {sorted(unknown)}; the layers are {sorted(ALL_LAYERS)}")
        self._model = model
        self._given_base, self._given_contract = base, contract
        self._read_contract: Contract | None = None
        self.base = find_base(model) if base is None else base
        self.policy = policy
        self.layers = frozenset(layers)
        self.expected = expected
        name = find_class(self.base).__name__ if contract is None else contract.name
        self.ledger = Ledger(name, policy, self.layers)
        self.find_batch_source: FindBatchSource | None = None
        self.on_stopped: Callable[[str], None] | None = None
        self.step: Step | None = None
        self.blueprint = Blueprint(self)
        self._state = CallState()
        self._watched: list[WatchedForward] = []
        # For a quick look in each step: the variables of each boundary, and the `forward` that layer 5 put there.
        self.attached_to: nn.Module | None = None
        self.attached: list[tuple[dict[str, Any], Any]] = []
        self._is_removed = False
        if 5 in self.layers:
            self._attach(model)

    @property
    def contract(self) -> Contract:
        """What the base model takes: the contract that was given, or else what its signature says.

        Raises:
            ValueError: none was given, and the signature says nothing, because it ends in an untyped ``**kwargs``.
        """
        if self._given_contract is not None:
            return self._given_contract
        if self._read_contract is None:
            self._read_contract = Contract.of(self.base)
        return self._read_contract

    @property
    def targets(self) -> dict[str, Any]:
        """What this thread's last call diverted, or the targets of the loss that is being computed."""
        return self._state.targets

    @property
    def leaks(self) -> list[Leak]:
        """The leaks so far; one entry per key, layer and source."""
        return self.ledger.leaks

    @property
    def boundaries(self) -> tuple[nn.Module, ...]:
        """The modules whose ``forward`` is guarded, from the outside inward."""
        return tuple(watched.module for watched in self._watched)

    # Layers 1 to 4: a batch before the call

    def filter(self, layer: int, batch: Any) -> ModelInputs:
        """Split a batch at one of the layers 1 to 4, and keep what an earlier layer diverted.

        Raises:
            LabelLeakError: the contract does not list a key, a target has two different values, or there is a leak
                under the policy ``"raise"``.
        """
        held = batch if isinstance(batch, ModelInputs) else ModelInputs({})
        fields = self.contract.flatten(batch)
        # A key that is both a model input and a target stays in the batch and is also passed to the loss.
        shared = {key: fields[key] for key in fields if self.contract.is_shared(key)}
        if layer not in self.layers:
            return ModelInputs(fields, held.targets | shared, held.metadata)
        self.ledger.record_call(layer, fields)
        split = self.split(self.contract, layer, fields)
        for key, value in fields.items():
            if self.contract.is_target(key) and key not in shared:
                source = "the batch" if key in self.expected else self.report(layer, key, value)
                self.ledger.record_diverted(layer, key)
                if value is not None:
                    self._keep(key, value, held.targets, source)
        return ModelInputs(split.model_inputs, held.targets | shared, held.metadata | split.metadata)

    def verify(self, model_inputs: Mapping[str, Any]) -> None:
        """Check once more, for layer 4, that the arguments of the call are inputs of the contract.

        Raises:
            LabelLeakError: one of them is not.
        """
        self.ledger.record_model_call(model_inputs)
        self.check_names(model_inputs, self.contract.inputs)
        name = self.contract.logged_as or find_class(self.base).__name__
        logger.debug("Calling %s with: %s", name, list(model_inputs))

    @contextmanager
    def diverting_to(self, targets: dict[str, Any]) -> Iterator[None]:
        """While a loss is computed, let layer 5 add what it diverts to the targets of that loss."""
        state = self._state
        state.targets, state.is_collecting = targets, True
        try:
            yield
        finally:
            state.is_collecting = False

    def pop_targets(self) -> dict[str, Any]:
        """Return what was diverted from this thread's last call, and forget it."""
        state = self._state
        targets, state.targets, state.caught_at = state.targets, {}, set()
        for watched in self._watched:
            targets = watched.pop_traced() | targets
        return targets

    # Layer 5

    def is_attached(self, model: nn.Module | None = None) -> bool:
        """Whether this guard is still in the ``forward`` of each boundary of a model (by default the guard's own)."""
        if model is not None and not self._covers(model):
            return False
        return bool(self._watched) and all(watched.is_installed() for watched in self._watched)

    def reattach(self, model: nn.Module) -> None:
        """Attach layer 5 again if the model is another one, or if another tool has replaced a ``forward``.

        A guard that was removed is not attached again.
        """
        if 5 not in self.layers or self._is_removed:
            self.ledger.is_removed = self._is_removed
            return
        if model is not self._model or not all(watched.is_installed() for watched in self._watched):
            self._attach(model)

    def remove(self) -> None:
        """Detach layer 5 for good, and restore the ``forward`` of each module that was there before."""
        self._is_removed = True
        self.attached_to, self.attached = None, []
        for watched in self._watched:
            watched.uninstall()

    def _covers(self, model: nn.Module) -> bool:
        found = find_boundaries(model, self._given_base).modules
        return {id(module) for module in found} <= {id(watched.module) for watched in self._watched}

    def _attach(self, model: nn.Module) -> None:
        """Install layer 5 at each boundary of a model, and leave in place what is there already."""
        found = find_boundaries(model, self._given_base)
        if found.base is not self.base:
            self.base, self._read_contract = found.base, None
        kept = {id(watched.module): watched for watched in self._watched if watched.is_installed()}
        replaced = {id(watched.module) for watched in self._watched if watched.is_active} - set(kept)
        parts = {id(module) for module in model.modules()}
        # A model that was guarded by itself stays guarded inside a wrapper.
        inner = [
            watched.module for watched in self._watched if watched.is_active and id(watched.module) in parts
        ]
        modules = {id(module): module for module in (*found.modules, *inner)}
        for watched in self._watched:
            if id(watched.module) not in modules:
                watched.uninstall()
        self._model, self._watched = model, []
        for module in modules.values():
            if id(module) in replaced:
                logger.warning(
                    "%s.forward was replaced since it was guarded; guarding it again",
                    find_class(module).__name__,
                )
            if id(module) in kept:
                self._watched.append(kept[id(module)])
                continue
            contract = self._given_contract if module is found.base else None
            self._watched.append(WatchedForward(module, self, contract))
            self._watched[-1].install()
        self.attached_to = model
        self.attached = [(watched.module.__dict__, watched.installed) for watched in self._watched]
        self._announce_limits()

    def _announce_limits(self) -> None:
        """Say what is not watched, at the start and whenever that changes."""
        before = set(self.ledger.list_limits())
        self.ledger.boundaries = [watched.record for watched in self._watched]
        for watched in self._watched:
            watched.record.is_base = watched.module is self.base
        for limit in self.ledger.list_limits():
            if limit not in before:
                logger.warning("Not watched: %s", limit)

    def start_call(self, boundary: object) -> None:
        """Forget what the last call diverted, unless a loss is being computed, or this is a part of the same call."""
        state = self._state
        if state.is_collecting:
            return
        if boundary in state.caught_at:
            state.targets, state.caught_at = {}, set()
        state.caught_at.add(boundary)

    # What the layers share

    def split(self, contract: Contract, layer: int, fields: Mapping[str, Any]) -> Split:
        """Split by a contract. An error also names the layer and the source of the key."""
        try:
            return contract.split(fields)
        except LabelLeakError as error:
            key = error.keys[0]
            source = find_call_source(key, fields.get(key), self.find_batch_source)
            leak, _ = self.ledger.record_leak(Leak(key, layer, source))
            raise LabelLeakError(f"{leak}. {error}", error.keys, leak) from None

    def report(
        self,
        layer: int,
        key: str,
        value: Any,
        call: Sequence[str] = (),
        *,
        by_position: bool = False,
        outcome: str = STOPPED,
        model: str = "",
        source: KeySource | None = None,
        has_value: bool | None = None,
    ) -> str:
        """Record a leak, log it if it is the first from its source, and return the name of the source.

        Args:
            has_value: whether the key has a value; by default whether ``value`` is not None. Pass it where the value
                itself is not at hand, because the call is being traced.

        Raises:
            LabelLeakError: under the policy ``"raise"``, unless the key reached a ``forward`` that takes any key.
        """
        if source is None:
            source = find_call_source(key, value, self.find_batch_source, by_position=by_position)
        first_layer = 0
        has_value = value is not None if has_value is None else has_value
        if self.step is not None and layer == 5 and has_value:
            first_layer = self.step.find_first_layer(key, self.layers)
        leak, is_new = self.ledger.record_leak(
            Leak(key, layer, source, outcome=outcome, model=model, first_layer=first_layer)
        )
        if is_new:
            _log(leak, call)
        if self.policy == "raise" and outcome != SWALLOWED:
            raise LabelLeakError(str(leak), (key,), leak)
        if outcome == STOPPED and self.on_stopped is not None:
            self.on_stopped(key)
        return source.name

    def divert(self, key: str, value: Any, source: str) -> None:
        """Keep a label that layer 5 removes from a call.

        If another boundary removed the same key from the same call, the first value is kept: nothing says which of the
        two a loss is meant to read. With a contract, or while a loss is computed from the targets, they must be equal.

        Raises:
            LabelLeakError: the targets hold another value for the key.
        """
        state = self._state
        if key not in state.targets or state.is_collecting or self._given_contract is not None:
            self._keep(key, value, state.targets, source)

    def _keep(self, key: str, value: Any, targets: dict[str, Any], source: str) -> None:
        """Add a key to the targets, unless they hold the same value already."""
        sources = self._state.sources
        if key not in targets:
            targets[key], sources[key] = value, source
        elif not is_same(targets[key], value):
            first = sources.get(key, "the batch")
            raise LabelLeakError(
                f"two different values for {key!r}: one from {first}, one from {source}. Remove one of them",
                (key,),
            )

    def check_names(self, clean: Mapping[str, Any], inputs: frozenset[str]) -> None:
        """Check the names of a clean call. This can fail only if a contract's own ``split`` is broken."""
        if left := tuple(sorted(set(clean) - inputs)):
            logger.error("CRITICAL: Labels still found in kwargs after removal! %s", list(left))
            logger.error("Cleaned kwargs: %s", list(clean))
            raise LabelLeakError(
                f"{', '.join(left)} would have reached {self.contract.name}.forward. "
                f"Correct {type(self.contract).__name__}.split, which returned it as a model input",
                left,
            )


def _log(leak: Leak, call: Sequence[str]) -> None:
    """Log the first leak from a source. Users search for these words and filter by these levels: do not change them."""
    if leak.layer == 1:
        logger.warning("Found %r in training_step inputs - removing it! (%s)", leak.key, leak)
    elif leak.layer == 2:
        logger.debug("Removing %r from inputs before model forward pass (%s)", leak.key, leak)
    elif leak.outcome == SWALLOWED:
        logger.info("%s", leak)
    elif leak.outcome == PASSED:
        logger.error("%s.forward does not take %r (%s)", leak.model, leak.key, leak)
    elif leak.layer == 5 and is_label_like(leak.key):
        logger.error("FOUND LABELS IN FORWARD METHOD! Input keys: %s (%s)", call, leak)
    else:
        logger.debug("Removing %r at layer %d (%s)", leak.key, leak.layer, leak)
