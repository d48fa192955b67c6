"""Layer 5 at one module: the guard's own ``forward`` in front of the module's, and what it does with a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import MethodType
from typing import TYPE_CHECKING, Any

from torch import nn
from torch._compile import _disable_dynamo

from label_guard.boundaries import find_class
from label_guard.code_reading import name_function
from label_guard.contract import Contract
from label_guard.copies import forget_copying, make_copyable
from label_guard.forward import (
    Call,
    find_hidden_original,
    find_slot,
    find_watched,
    guard_forward,
    unbind_forward,
)
from label_guard.leak import PASSED, STOPPED, SWALLOWED, KeySource, LabelLeakError
from label_guard.ledger import BoundaryRecord
from label_guard.names import is_label_like
from label_guard.signature import CLOSED, OPEN, read_signature
from label_guard.tracing import find_traced_source, must_stay_in_graph, run_when_traced

if TYPE_CHECKING:
    from label_guard.guard import LabelGuard


class Traced:
    """What a compiled graph removed from its last call, as attributes: Dynamo can set these in a graph."""


class WatchedForward:
    """Keep keys that a module's ``forward`` does not take out of its calls.

    Without a contract, a key is stopped only where it would do harm: a label that the signature does not list, or a
    key without a value. Any other unlisted key is recorded and left in the call, so that Python raises its TypeError. A
    ``forward`` that takes any key is left alone; a label that reaches it is recorded.

    With a contract, any unlisted key raises.

    Args:
        module: the module.
        guard: the guard, which records leaks and keeps what is diverted.
        contract: what the module takes; None means what its signature says.

    Attributes:
        installed: the guarded ``forward``; None before it is installed.
    """

    def __init__(self, module: nn.Module, guard: LabelGuard, contract: Contract | None) -> None:
        self.module = module
        self.name = find_class(module).__name__
        self.guard = guard
        self.contract = contract
        self.traced = Traced()
        self.decide = run_when_traced(self._make_decide())
        self._active = False
        self._before: Any = None
        self.installed: Any = None
        self._swallowed: set[str] = set()
        slot = find_slot(module)
        if (other := find_watched(module.__dict__.get(slot))) is not None:
            other.uninstall()
        signature = self.signature = read_signature(module, getattr(module, slot))
        self.kind = signature.kind
        self._positional = signature.positional
        self._only_positional = signature.only_positional
        self._inputs = signature.names
        if contract is not None:
            self._inputs = contract.inputs | {name for name in signature.names if not is_label_like(name)}
            self._call_contract = replace(contract, inputs=self._inputs)
        hidden = find_hidden_original(module)
        is_watched = contract is not None or self.kind != OPEN
        self.record = BoundaryRecord(self.name, is_watched, "" if hidden is None else name_function(hidden))

    @property
    def is_active(self) -> bool:
        """Whether it is switched on."""
        return self._active

    def is_installed(self) -> bool:
        """Whether this object is still in the ``forward`` of the module."""
        return self._active and find_watched(self.module.__dict__.get(find_slot(self.module))) is self

    def install(self) -> None:
        """Install the guarded ``forward`` on the module instance.

        A forward hook would not be enough: some PEFT versions call ``.forward``, which skips hooks, and a hook that is
        registered later can still add a key. ``functools.wraps`` is not used, because accelerate removes wrappers that
        have ``__wrapped__``.
        """
        module, slot = self.module, find_slot(self.module)
        self._active = True
        self._before = module.__dict__.get(slot)
        names = self._positional
        unsafe = (index for index, name in enumerate(names) if name not in self._inputs)
        positions = next(unsafe, float("inf") if self.signature.takes_more_positions else len(names))
        kind = self.kind if self.contract is None else CLOSED
        forward = guard_forward(self, unbind_forward(module, slot), self._inputs, positions, kind)
        self.installed = module.__dict__[slot] = MethodType(forward, module)
        make_copyable(self)

    def uninstall(self) -> None:
        """Restore the ``forward`` that was there before."""
        self._active = False
        module, slot = self.module, find_slot(self.module)
        forward = module.__dict__.get(slot)
        forget_copying(module)
        if getattr(forward, "label_guard", None) is not self or hasattr(forward, "__wrapped__"):
            # Another tool has wrapped the guarded forward, so it stays in place. It lets everything pass from now on.
            return
        self.restore(module, module.__dict__, slot)

    def restore(self, module: nn.Module, variables: dict[str, Any], slot: str) -> None:
        """Put the ``forward`` that was there before into the variables of the module, or of a copy of it."""
        if self._before is not None:
            variables[slot] = self._before
        elif slot == "forward":
            del variables[slot]
        else:
            variables[slot] = MethodType(type(module).forward, module)

    # torch.compiler.disable would import the compiler when this module is imported.
    @_disable_dynamo
    def catch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Stop the leaks of a call. Returns the call without them.

        Raises:
            LabelLeakError: the contract does not list a key, or there is a leak under the policy ``"raise"``.
        """
        if not self._active:
            return args, kwargs
        if not self.record.is_watched:
            self._record_swallowed(kwargs)
            return args, kwargs
        self.guard.start_call(self)
        if self.contract is None:
            return args, self._stop_leaks(args, kwargs)
        call = self._bind(args, kwargs)
        self.guard.ledger.record_call(5, call)
        if self.guard.policy == "watch":
            self._record_unlisted(call, kwargs)
            return args, kwargs
        return self._unbind(len(args), self._apply_contract(call, kwargs))

    def _make_decide(self) -> Callable[[tuple[str, ...], tuple[str, ...]], tuple[str, ...] | None]:
        """Make the function that decides while a call is traced: Dynamo takes no methods for this."""

        def decide(names: tuple[str, ...], valued: tuple[str, ...]) -> tuple[str, ...] | None:
            if not self._active or not self.record.is_watched:
                return ()
            return self._decide_in_graph(names, valued) if must_stay_in_graph() else None

        return decide

    def _decide_in_graph(self, names: tuple[str, ...], valued: tuple[str, ...]) -> tuple[str, ...]:
        """Report the leaks of a call that must stay in one graph. Returns the names that the graph removes."""
        removed = []
        for key in names:
            if key in self._inputs:
                continue
            source = find_traced_source(key)
            if self.guard.policy == "watch" and self.contract is not None:
                # As in a call that is not traced, every unlisted key is named, and none is removed.
                self._report(key, None, names, source=source, has_value=key in valued)
                continue
            is_lost = key in valued and self.contract is not None and not self._is_listed(key)
            if is_lost or not self._is_stopped(key, has_value=key in valued):
                outcome = STOPPED if is_lost else PASSED
                if outcome == STOPPED or self.kind == CLOSED:
                    name = self.guard.report(
                        5,
                        key,
                        None,
                        names,
                        outcome=outcome,
                        model=self.name,
                        source=source,
                        has_value=key in valued,
                    )
                    if is_lost:
                        raise LabelLeakError(
                            f"{self.name}.forward: the contract does not list {key!r}, which comes from {name}. Remove "
                            "it from the call, or list it in the contract",
                            (key,),
                        )
            elif self._report(key, None, names, source=source, has_value=key in valued) is not None:
                self.guard.ledger.record_diverted(5, key)
                removed.append(key)
        return tuple(removed)

    def _is_stopped(self, key: str, *, has_value: bool) -> bool:
        """Whether an unlisted key is removed from a call."""
        if self.contract is not None:
            return not has_value or self._is_listed(key)
        return is_label_like(key) or (self.kind == CLOSED and not has_value)

    def _is_listed(self, key: str) -> bool:
        """Whether a key is a target or metadata of the contract."""
        return self._call_contract.is_target(key) or key in self._call_contract.metadata

    def pop_traced(self) -> dict[str, Any]:
        """Return what a compiled graph removed from its last call, and forget it."""
        values = dict(vars(self.traced))
        vars(self.traced).clear()
        return values

    def _record_swallowed(self, kwargs: dict[str, Any]) -> None:
        """Record a label that reaches a ``forward`` which takes any key; once, because it may be meant to."""
        for key, value in kwargs.items():
            is_new = key not in self._inputs and key not in self._swallowed and key != "num_items_in_batch"
            if is_new and is_label_like(key):
                self._swallowed.add(key)
                self.guard.report(5, key, value, outcome=SWALLOWED, model=self.name)

    def _stop_leaks(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Remove what the signature does not list and what would do harm."""
        call = dict(zip(self._positional, args, strict=False)) | kwargs
        self.guard.ledger.record_call(5, call)
        clean = dict(kwargs)
        for key in [key for key in kwargs if key not in self._inputs]:
            value = kwargs[key]
            if self._is_stopped(key, has_value=value is not None):
                source = self._report(key, value, list(call))
                if source is not None:
                    self._keep(key, value, source, is_target=is_label_like(key))
                    del clean[key]
            elif self.kind == CLOSED:
                self.guard.report(5, key, value, list(call), outcome=PASSED, model=self.name)
        return clean

    def _report(
        self,
        key: str,
        value: Any,
        call: Sequence[str],
        *,
        by_position: bool = False,
        source: KeySource | None = None,
        has_value: bool | None = None,
    ) -> str | None:
        """Report a key that is to be stopped. Returns its source, or None if the policy lets it pass."""
        outcome = STOPPED
        if self.guard.policy == "watch":
            outcome = PASSED if self.kind == CLOSED else SWALLOWED
        name = self.guard.report(
            5,
            key,
            value,
            call,
            by_position=by_position,
            outcome=outcome,
            model=self.name,
            source=source,
            has_value=has_value,
        )
        return name if outcome == STOPPED else None

    def _keep(self, key: str, value: Any, source: str, *, is_target: bool) -> None:
        """Keep a key that is removed from a call for the loss, if it is a target and has a value.

        A key without a value carries nothing, so nothing is lost, whatever its name.
        """
        self.guard.ledger.record_diverted(5, key)
        if is_target and value is not None:
            self.guard.divert(key, value, source)

    def _record_unlisted(self, call: dict[str, Any], kwargs: dict[str, Any]) -> None:
        for key, value in call.items():
            if key not in self._inputs:
                self._report(key, value, list(call), by_position=key not in kwargs)

    def _apply_contract(self, call: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Split a call by the contract. Returns its model inputs."""
        contract = self._call_contract
        for key, value in list(call.items()):
            if key in contract.inputs:
                continue
            if value is None or contract.is_target(key) or key in contract.metadata:
                source = self._report(key, value, list(call), by_position=key not in kwargs)
                self._keep(key, value, str(source), is_target=contract.is_target(key))
            if value is None:
                del call[key]
        clean = self.guard.split(contract, 5, call).model_inputs
        self.guard.check_names(clean, contract.inputs)
        return clean

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by their names."""
        names = self._positional[: len(args)]
        if len(args) > len(names):
            raise LabelLeakError(
                f"{self.name}.forward got {len(args)} positional arguments, but has only {len(names)} "
                "positional parameters, so the others have no names. Pass them by name"
            )
        if twice := tuple(sorted(set(names) & set(kwargs))):
            raise LabelLeakError(
                f"{', '.join(twice)} came by position and by name. Pass each of them once", twice
            )
        return dict(zip(names, args, strict=True)) | kwargs

    def _unbind(self, count: int, call: dict[str, Any]) -> Call:
        """Return a call whose positional-only arguments are passed by position."""
        names = self._positional[: min(count, self._only_positional)]
        return tuple(call.pop(name) for name in names), call
