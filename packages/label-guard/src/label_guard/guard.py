"""Guard one model in five layers. Each layer splits the batch, or the call, that passes it by the same contract.

    Trainer -> Layer 1 training_step -> Layer 2 _prepare_inputs -> Layer 3 compute_loss
            -> Layer 4 model inputs -> Layer 5 forward -> the base model: clean inputs

``LabelGuard`` is layer 5 and holds what the layers share. ``mixin.py`` adds layers 1 to 4 to a ``Trainer``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MethodType
from typing import Any

from torch import nn
from torch._compile import _disable_dynamo

from label_guard.base import find_base, find_class, read_signature
from label_guard.call_source import FindBatchSource, find_call_source
from label_guard.contract import Contract, ModelInputs, Split, is_label_like, is_same
from label_guard.forward import find_guard, guard_forward, unbind_forward
from label_guard.leak import LAYERS, LabelLeakError, Leak
from label_guard.ledger import Ledger

logger = logging.getLogger("label_guard")

ALL_LAYERS = frozenset(LAYERS)


class LabelGuard:
    """Keep keys that a model's contract does not list out of the ``forward`` of its base model.

    In a training loop without a Trainer, ``guard.pop_targets()`` after a call returns what was diverted from it.

    Args:
        model: the model, wrapped or not. The base model is found beneath PEFT, DDP, FSDP, compile and plain wrappers.
        contract: what the base model takes; by default what its signature says.
        base: the base model, if it cannot be found automatically.
        policy: ``"divert"`` moves a label to the targets; ``"raise"`` raises at the first leak.
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
        if policy not in ("divert", "raise"):
            raise ValueError(f"policy is {policy!r}; it must be 'divert' or 'raise'")
        if unknown := set(layers) - ALL_LAYERS:
            raise ValueError(f"there is no layer {sorted(unknown)}; the layers are {sorted(ALL_LAYERS)}")
        self._given_base = base
        self.base = find_base(model) if base is None else base
        self.contract = Contract.of(self.base) if contract is None else contract
        self.policy = policy
        self.layers = frozenset(layers)
        self.expected = expected
        self.ledger = Ledger(self.contract.name, policy, self.layers)
        self.find_batch_source: FindBatchSource | None = None
        self.targets: dict[str, Any] = {}
        self._collecting = False
        self._sources: dict[str, str] = {}
        self._before: Callable[..., Any] | None = None
        self._active = False
        if 5 in self.layers:
            self._attach()

    @property
    def leaks(self) -> list[Leak]:
        """The leaks so far; one entry per key, layer and source."""
        return self.ledger.leaks

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
        split = self._split(self.contract, layer, fields)
        for key, value in fields.items():
            if self.contract.is_target(key) and key not in shared:
                source = "the batch" if key in self.expected else self._report(layer, key, value)
                self._divert(layer, key, value, held.targets, source)
        return ModelInputs(split.model_inputs, held.targets | shared, held.metadata | split.metadata)

    def verify(self, model_inputs: Mapping[str, Any]) -> None:
        """Check once more, for layer 4, that the arguments of the call are inputs of the contract.

        Raises:
            LabelLeakError: one of them is not.
        """
        self.ledger.record_model_call(model_inputs)
        self._check_names(model_inputs, self.contract.inputs)
        name = self.contract.logged_as or find_class(self.base).__name__
        logger.debug("Calling %s with: %s", name, list(model_inputs))

    @contextmanager
    def diverting_to(self, targets: dict[str, Any]) -> Iterator[None]:
        """While a loss is computed, let layer 5 add what it diverts to the targets of that loss."""
        self.targets, self._collecting = targets, True
        try:
            yield
        finally:
            self._collecting = False

    def pop_targets(self) -> dict[str, Any]:
        """Return what was diverted from the last call, and forget it."""
        targets, self.targets = self.targets, {}
        return targets

    # Layer 5: the base model's own forward

    def is_attached(self, model: nn.Module | None = None) -> bool:
        """Whether this guard is still in the ``forward`` of the base model (by default the guard's own)."""
        base = self.base if model is None else self._find_base(model)
        return self._active and find_guard(base.__dict__.get("forward")) is self

    def reattach(self, model: nn.Module) -> None:
        """Attach layer 5 again if the model is another one, or if another tool has replaced its ``forward``."""
        base = self._find_base(model)
        if 5 not in self.layers or (base is self.base and self.is_attached()):
            return
        if base is not self.base:
            self.remove()
            self.base = base
        else:
            logger.warning(
                "%s.forward was replaced since it was guarded; guarding it again", find_class(base).__name__
            )
        self._attach()

    def remove(self) -> None:
        """Detach layer 5 and restore the ``forward`` that was there before."""
        self._active = False
        forward = self.base.__dict__.get("forward")
        if getattr(forward, "label_guard", None) is not self or hasattr(forward, "__wrapped__"):
            # Another tool has wrapped the guarded forward, so it stays in place. It lets everything pass from now on.
            return
        del self.base.__dict__["forward"]
        if self._before is not None:
            self.base.__dict__["forward"] = self._before

    def _find_base(self, model: nn.Module) -> nn.Module:
        return find_base(model) if self._given_base is None else self._given_base

    def _attach(self) -> None:
        """Install layer 5 as the ``forward`` of the base model instance.

        A forward hook would not be enough: some PEFT versions call ``.forward``, which skips hooks, and a hook that is
        registered later can still add a key. ``functools.wraps`` is not used, because accelerate removes wrappers that
        have ``__wrapped__``.
        """
        if (other := find_guard(self.base.__dict__.get("forward"))) is not None:
            other.remove()
        self._active = True
        self._before = self.base.__dict__.get("forward")
        signature = read_signature(self.base)
        passing = self.contract.inputs | {name for name in signature.names if not is_label_like(name)}
        self._call_contract = replace(self.contract, inputs=passing)
        self._positional = signature.positional
        forward = guard_forward(self, unbind_forward(self.base), passing, self._count_safe_positions())
        self.base.__dict__["forward"] = MethodType(forward, self.base)

    def _count_safe_positions(self) -> int:
        """Return how many leading positional arguments are inputs."""
        names = self._positional
        unsafe = (index for index, name in enumerate(names) if name not in self._call_contract.inputs)
        return next(unsafe, len(names))

    # torch.compiler.disable would import the compiler when this module is imported.
    @_disable_dynamo
    def catch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Divert the leaks of a call at layer 5. Returns the clean call as keyword arguments.

        Raises:
            LabelLeakError: as for ``filter``.
        """
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
                source = self._report(5, key, value, list(call), by_position=key not in kwargs)
                self._divert(5, key, value, self.targets, source)
            if value is None:
                # A key without a value carries nothing, so nothing is lost, whatever its name.
                del call[key]
        clean = self._split(contract, 5, call).model_inputs
        self._check_names(clean, contract.inputs)
        return clean

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by their names."""
        names = self._positional[: len(args)]
        if len(args) > len(names):
            raise LabelLeakError(
                f"{self.contract.name}.forward got {len(args)} positional arguments, but has only {len(names)} "
                "positional parameters, so the others have no names. Pass them by name"
            )
        if twice := tuple(sorted(set(names) & set(kwargs))):
            raise LabelLeakError(
                f"{', '.join(twice)} came by position and by name. Pass each of them once", twice
            )
        return dict(zip(names, args, strict=True)) | kwargs

    # What the layers share

    def _split(self, contract: Contract, layer: int, fields: Mapping[str, Any]) -> Split:
        """Split by the contract. An error also names the layer and the source of the key."""
        try:
            return contract.split(fields)
        except LabelLeakError as error:
            key = error.keys[0]
            source = find_call_source(key, fields.get(key), self.find_batch_source)
            leak, _ = self.ledger.record_leak(layer, key, source)
            raise LabelLeakError(f"{leak}. {error}", error.keys, leak) from None

    def _report(
        self, layer: int, key: str, value: Any, call: Sequence[str] = (), *, by_position: bool = False
    ) -> str:
        """Record a leak, log it if it is the first from its source, and return the name of the source.

        Raises:
            LabelLeakError: under the policy ``"raise"``.
        """
        source = find_call_source(key, value, self.find_batch_source, by_position=by_position)
        leak, is_new = self.ledger.record_leak(layer, key, source)
        if is_new:
            _log(leak, call)
        if self.policy == "raise":
            raise LabelLeakError(str(leak), (key,), leak)
        return source.name

    def _divert(self, layer: int, key: str, value: Any, targets: dict[str, Any], source: str) -> None:
        """Move a key to the targets, unless its value is None or the targets already hold the same value.

        Raises:
            LabelLeakError: the targets hold another value for the key.
        """
        self.ledger.record_diverted(layer, key)
        if value is None or not self.contract.is_target(key):
            return
        if key not in targets:
            targets[key], self._sources[key] = value, source
        elif not is_same(targets[key], value):
            first = self._sources.get(key, "the batch")
            raise LabelLeakError(
                f"two different values for {key!r}: one from {first}, one from {source}. Remove one of them",
                (key,),
            )

    def _check_names(self, clean: Mapping[str, Any], inputs: frozenset[str]) -> None:
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
    elif leak.layer == 5 and is_label_like(leak.key):
        logger.error("FOUND LABELS IN FORWARD METHOD! Input keys: %s (%s)", call, leak)
    else:
        logger.debug("Removing %r at layer %d (%s)", leak.key, leak.layer, leak)
