"""Judge code that may have added a key, and choose whom to name: one suspect if its code decides it, else all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

from label_guard.code_reading import (
    Evidence,
    KeyUse,
    Scope,
    find_scopes,
    follow,
    name_function,
    name_scope,
    read_use,
)

NO_USE = KeyUse()


@dataclass(frozen=True)
class Suspect:
    """Something that may have added a key.

    Attributes:
        name: its name, with file and line where it has one.
        use: what its code, and the code that it calls, does with the key.
        code: its code. The same function may be found on the stack and among the methods of a trainer.
    """

    name: str
    use: KeyUse = NO_USE
    code: CodeType | None = None

    @property
    def evidence(self) -> Evidence:
        """How much its code says for it."""
        return self.use.evidence


def judge(called: Any, key: str, label: str = "") -> Suspect:
    """Judge a callable by its code and the code that it calls.

    Args:
        called: a function, method, partial, or object with ``__call__``.
        key: the key that may have been added.
        label: what it is, to be written before its name.
    """
    return _judge(find_scopes(called), name_function(called), key, label, type(called).__name__ + ".")


def judge_scope(scope: Scope, key: str, name: str = "", label: str = "") -> Suspect:
    """Judge one function by its code and the code that it calls."""
    return _judge([scope], name or name_scope(scope), key, label)


def _judge(roots: list[Scope], name: str, key: str, label: str, prefix: str = "?") -> Suspect:
    scopes = list(follow(roots))
    uses = [read_use(scope, key) for scope in scopes]
    total = NO_USE
    for use in uses:
        total |= use
    if total.evidence >= Evidence.MENTIONS or (scopes and not uses[0].evidence):
        # Name the function that adds the key too, if another one called it.
        best = next(scope for scope, use in zip(scopes, uses, strict=True) if use.evidence == total.evidence)
        if best.name.startswith(prefix):
            name = name_scope(best)
        elif best is not scopes[0] and total.evidence:
            name = f"{name}, in {name_scope(best)}"
    return Suspect(f"{label} {name}".strip(), total, scopes[0].code if scopes else None)


def choose(stages: Sequence[Callable[[], list[Suspect]]]) -> list[Suspect]:
    """Return whom to name: those of the first stage whose code writes the key; else all that may have added it.

    A wrong name is worse than several. So a suspect whose code only mentions the key, or writes computed keys, does not
    clear the others.
    """
    seen: list[Suspect] = []
    for find in stages:
        found = find()
        if writers := [suspect for suspect in found if suspect.evidence == Evidence.WRITES]:
            return _unique(writers)
        seen += found
    return _unique([suspect for suspect in seen if suspect.evidence])


def join_names(suspects: Sequence[Suspect]) -> str:
    """Return the names of suspects as one phrase."""
    return " or ".join(suspect.name for suspect in suspects)


def _unique(suspects: list[Suspect]) -> list[Suspect]:
    first: dict[Any, Suspect] = {}
    for suspect in suspects:
        first.setdefault(suspect.code or suspect.name, suspect)
    return list(first.values())
