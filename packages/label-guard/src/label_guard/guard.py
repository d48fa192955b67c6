"""The five layers. Each is sufficient for what passes it; all split by the one contract.

    Trainer -> Layer 1 training_step -> Layer 2 _prepare_inputs -> Layer 3 compute_loss
            -> Layer 4 model inputs -> Layer 5 forward -> the base model: clean inputs

``LabelGuard`` holds what the layers share and is itself layer 5; ``mixin.py`` puts layers 1 to 4 into a ``Trainer``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MethodType
from typing import Any, Literal

from torch import nn
from torch._compile import _disable_dynamo

from label_guard.base import class_of, find_base, read_signature
from label_guard.contract import Contract, ModelInputs, is_label_like, is_same
from label_guard.forward import guard_forward, guard_in, unbound_forward
from label_guard.leak import LAYERS, LabelLeakError, Leak
from label_guard.ledger import Ledger
from label_guard.provenance import BatchOrigin, find_injector

logger = logging.getLogger("label_guard")

ALL_LAYERS = frozenset(LAYERS)
Policy = Literal["divert", "raise"]


class LabelGuard:
    """Guards one model: nothing that its contract does not list reaches the ``forward`` of its base.

    Args:
        model: the model, wrapped or not; the base is found beneath PEFT, DDP, FSDP, compile and plain wrappers.
        contract: what the base takes; by default what its signature says.
        base: the base, where it cannot be found by itself.
        policy: ``"divert"`` moves a label to the targets; ``"raise"`` ends the run at the first leak.
        layers: the layers that are on.
        expected: targets that a batch is meant to hold: they are split off without being called a leak. In a *call*
            to the model they are one.

    In a loop of one's own, ``guard.pop_targets()`` after the call holds what was diverted from it.
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
        if policy not in ("divert", "raise"):
            raise ValueError(f"policy is {policy!r}; it is 'divert' or 'raise'")
        if unknown := set(layers) - ALL_LAYERS:
            raise ValueError(f"there is no layer {sorted(unknown)}; the layers are {sorted(ALL_LAYERS)}")
        self._given_base = base
        self.base = find_base(model) if base is None else base
        self.contract = Contract.of(self.base) if contract is None else contract
        self.policy = policy
        self.layers = frozenset(layers)
        self.expected = expected
        self.ledger = Ledger(self.contract.name, policy, self.layers)
        self.batch_origin: BatchOrigin | None = None
        self.targets: dict[str, Any] = {}
        self._collecting = False
        self._sources: dict[str, str] = {}
        self._before: Callable[..., Any] | None = None
        self._active = False
        if 5 in self.layers:
            self._attach()

    @property
    def leaks(self) -> list[Leak]:
        """Every leak so far, one entry for a key at a layer from one injector."""
        return self.ledger.leaks

    # Layers 1 to 4: a batch on its way to the model

    def filter(self, layer: int, batch: Any) -> ModelInputs:
        """Split a batch at a layer; what an earlier layer took out stays with it.

        Raises ``LabelLeakError`` for a key in no list, for a target with two values, and under ``raise`` for a leak.
        """
        held = batch if isinstance(batch, ModelInputs) else ModelInputs({})
        fields = self.contract.flatten(batch)
        # A key that the model names too is shared: the loss gets a copy, and it is where it should be.
        shared = {key: fields[key] for key in fields if self.contract.is_shared(key)}
        if layer not in self.layers:
            return ModelInputs(fields, held.targets | shared, held.metadata)
        self.ledger.record_call(layer, fields)
        split = self._split(self.contract, layer, fields)
        for key, value in fields.items():
            if self.contract.is_target(key) and key not in shared:
                origin = "the batch" if key in self.expected else self._report(layer, key, value)
                self._divert(layer, key, value, held.targets, origin)
        return ModelInputs(split.model_inputs, held.targets | shared, held.metadata | split.metadata)

    def verify(self, model_inputs: Mapping[str, Any]) -> None:
        """Layer 4's second look: what the call will carry holds inputs of the contract and nothing else."""
        self.ledger.record_model_call(model_inputs)
        self._recheck(model_inputs, self.contract.inputs)
        is_higgs = self.contract.name.startswith("higgs_audio")
        known = "HiggsAudioModel" if is_higgs else class_of(self.base).__name__
        logger.debug("Calling %s with: %s", known, list(model_inputs))

    @contextmanager
    def diverting_to(self, targets: dict[str, Any]) -> Iterator[None]:
        """While a loss is computed, what layer 5 diverts goes straight into its targets."""
        self.targets, self._collecting = targets, True
        try:
            yield
        finally:
            self._collecting = False

    def pop_targets(self) -> dict[str, Any]:
        """What was diverted from the last call, once."""
        targets, self.targets = self.targets, {}
        return targets

    # Layer 5: the base's own forward

    def alive(self, model: nn.Module | None = None) -> bool:
        """Whether the base beneath a model (by default the guard's own) still has this guard in its ``forward``."""
        base = self.base if model is None else self._base_of(model)
        return self._active and guard_in(base.__dict__.get("forward")) is self

    def ensure(self, model: nn.Module) -> None:
        """Attach again where the model was exchanged or its ``forward`` replaced by another tool."""
        base = self._base_of(model)
        if 5 not in self.layers or (base is self.base and self.alive()):
            return
        if base is not self.base:
            self.remove()
            self.base = base
        else:
            logger.warning(
                "%s.forward was replaced since it was guarded; guarding it again", class_of(base).__name__
            )
        self._attach()

    def remove(self) -> None:
        """Take layer 5 away and put back the ``forward`` that was there."""
        self._active = False
        forward = self.base.__dict__.get("forward")
        if getattr(forward, "label_guard", None) is not self or hasattr(forward, "__wrapped__"):
            return  # another tool wrapped it since: it stays in place, and lets everything pass
        del self.base.__dict__["forward"]
        if self._before is not None:
            self.base.__dict__["forward"] = self._before

    def _base_of(self, model: nn.Module) -> nn.Module:
        return find_base(model) if self._given_base is None else self._given_base

    def _attach(self) -> None:
        """Put layer 5 on the base instance, as its ``forward``.

        A forward hook would not do: some PEFT versions call ``.forward``, which skips hooks, and a later hook can add
        a key. Not by ``functools.wraps`` either: accelerate peels off what has ``__wrapped__``.
        """
        if (other := guard_in(self.base.__dict__.get("forward"))) is not None:
            other.remove()
        self._active = True
        self._before = self.base.__dict__.get("forward")
        signature = read_signature(self.base)
        passing = self.contract.inputs | {name for name in signature.names if not is_label_like(name)}
        self._call_contract = replace(self.contract, inputs=passing)
        self._positional = signature.positional
        forward = guard_forward(self, unbound_forward(self.base), passing, self._count_safe_positions())
        self.base.__dict__["forward"] = MethodType(forward, self.base)

    def _count_safe_positions(self) -> int:
        """How many leading positional arguments are sure to land on inputs."""
        names = self._positional
        unsafe = (index for index, name in enumerate(names) if name not in self._call_contract.inputs)
        return next(unsafe, len(names))

    @_disable_dynamo  # torch.compiler.disable would import the compiler here and now
    def catch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The slow path of layer 5: a leak is in the call. Returns the clean keyword arguments."""
        call = self._bind(args, kwargs)
        if not self._active:
            return call
        if not self._collecting:
            self.targets = {}
        self.ledger.record_call(5, call)
        contract = self._call_contract
        for key, value in list(call.items()):
            if key in contract.inputs:
                continue
            if value is None or contract.is_target(key) or key in contract.metadata:
                origin = self._report(5, key, value, list(call), by_position=key not in kwargs)
                self._divert(5, key, value, self.targets, origin)
            if value is None:
                del call[key]  # a name without a value carries nothing, so nothing is lost
        clean = self._split(contract, 5, call).model_inputs
        self._recheck(clean, contract.inputs)
        return clean

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """A call by names alone."""
        names = self._positional[: len(args)]
        if len(args) > len(names):
            raise LabelLeakError(
                f"{self.contract.name}.forward got {len(args)} positional arguments, which carry no names, and names "
                f"{len(names)} itself"
            )
        if twice := tuple(sorted(set(names) & set(kwargs))):
            raise LabelLeakError(f"{', '.join(twice)} came by position and by name", twice)
        return dict(zip(names, args, strict=True)) | kwargs

    # What the layers share

    def _split(self, contract: Contract, layer: int, fields: Mapping[str, Any]) -> Any:
        """Split by the contract; an error is told apart by layer and injector."""
        try:
            return contract.split(fields)
        except LabelLeakError as error:
            key = error.keys[0]
            injector = find_injector(key, fields.get(key), self.batch_origin)
            leak, _ = self.ledger.record_leak(layer, key, injector)
            raise LabelLeakError(f"{leak}. {error}", error.keys, leak) from None

    def _report(
        self, layer: int, key: str, value: Any, call: Sequence[str] = (), *, by_position: bool = False
    ) -> str:
        """Record a leak and return its origin. It is logged once for its injector; under ``raise`` it ends the run."""
        injector = find_injector(key, value, self.batch_origin, by_position=by_position)
        leak, is_new = self.ledger.record_leak(layer, key, injector)
        if is_new:
            _log(leak, call)
        if self.policy == "raise":
            raise LabelLeakError(str(leak), (key,), leak)
        return injector.origin

    def _divert(self, layer: int, key: str, value: Any, targets: dict[str, Any], origin: str) -> None:
        """Move one key to the targets; set it aside where it says nothing or nothing new."""
        self.ledger.record_diverted(layer, key)
        if value is None or not self.contract.is_target(key):
            return
        if key not in targets:
            targets[key], self._sources[key] = value, origin
        elif not is_same(targets[key], value):
            first = self._sources.get(key, "the batch")
            raise LabelLeakError(
                f"two different values for {key!r}: one from {first}, one from {origin}", (key,)
            )

    def _recheck(self, clean: Mapping[str, Any], inputs: frozenset[str]) -> None:
        """The last look before the call; it can fail only where a contract's own ``split`` was broken."""
        if left := tuple(sorted(set(clean) - inputs)):
            logger.error("CRITICAL: Labels still found in kwargs after removal! %s", list(left))
            logger.error("Cleaned kwargs: %s", list(clean))
            raise LabelLeakError(f"{', '.join(left)} would have reached {self.contract.name}.forward", left)


def _log(leak: Leak, call: Sequence[str]) -> None:
    """One line for the first leak from an injector. Words and levels are those that users already search for."""
    if leak.layer == 1:
        logger.warning("Found %r in training_step inputs - removing it! (%s)", leak.key, leak)
    elif leak.layer == 2:
        logger.debug("Removing %r from inputs before model forward pass (%s)", leak.key, leak)
    elif leak.layer == 5 and is_label_like(leak.key):
        logger.error("FOUND LABELS IN FORWARD METHOD! Input keys: %s (%s)", call, leak)
    else:
        logger.debug("Removing %r at layer %d (%s)", leak.key, leak.layer, leak)
