"""Guard every model that a script trains, by layer 5 alone, and collect what the guards find."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from label_guard.guard import LabelGuard
    from label_guard.ledger import Ledger

logger = logging.getLogger("label_guard")

OnStopped = Callable[[str], None]


@dataclass
class GuardedModel:
    """What was found at one model of the run.

    Attributes:
        name: the class of the model, and the trainer or the function that it was found in.
        ledger: the record of its guard. The model is not kept, so that the script can free it.
    """

    name: str
    ledger: Ledger


class GuardedRun:
    """The guards of all models of one run.

    Attributes:
        policy: the policy of every guard: ``"divert"``, ``"raise"`` or ``"watch"``.
        models: the models that were guarded, in this order.
        failures: one sentence for each model that could not be guarded.
    """

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.models: list[GuardedModel] = []
        self.failures: list[str] = []
        # The guards that this run made, and the outermost module that each was made for.
        self._roots: weakref.WeakKeyDictionary[LabelGuard, weakref.ref[nn.Module]] = (
            weakref.WeakKeyDictionary()
        )
        self._failed: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def guard(self, model: nn.Module, place: str, on_stopped: OnStopped | None = None) -> None:
        """Guard a model, or guard it again if it was wrapped. If that fails, say so and let the script run.

        Args:
            model: the model, wrapped or not. A guard that the script attached itself is left as it is.
            place: the trainer or the function that the model was found in.
            on_stopped: is called with each key that is kept out of the model.
        """
        if model in self._failed:
            return
        name = f"{type(model).__name__} in {place}"
        try:
            self._guard(model, name, on_stopped)
        except Exception as error:
            self._failed.add(model)
            self.failures.append(f"{name}: {type(error).__name__}: {error}")
            logger.exception("Not guarded: %s", self.failures[-1])

    def adopt(self, guard: LabelGuard, name: str) -> None:
        """Report what a guard finds that the script attached itself."""
        if all(model.ledger is not guard.ledger for model in self.models):
            self.models.append(GuardedModel(name, guard.ledger))

    def _guard(self, model: nn.Module, name: str, on_stopped: OnStopped | None) -> None:
        # Imported here, because the script may set what torch reads when it is imported.
        from label_guard.guard import LabelGuard

        modules = set(model.modules())
        # By their models too, because another tool may have replaced the guarded forward.
        made = [guard for guard, root in self._roots.items() if root() in modules]
        found = list(dict.fromkeys([*made, *_find_guards(model)]))
        made = [guard for guard in found if guard in self._roots]
        for guard in found:
            if guard not in made:
                self.adopt(guard, name)
        if not found:
            guard = LabelGuard(model, policy=self.policy, layers=frozenset({5}))
            self.models.append(GuardedModel(name, guard.ledger))
        elif made and not self._is_part(model, made[0]):
            guard = made[0]
            guard.reattach(model)
        else:
            return
        self._roots[guard] = weakref.ref(model)
        guard.on_stopped = on_stopped or guard.on_stopped

    def _is_part(self, model: nn.Module, guard: LabelGuard) -> bool:
        """Whether a model is only a part of the one that a guard was made for."""
        root = self._roots[guard]()
        return root is not None and root is not model and any(part is model for part in root.modules())


def _find_guards(model: nn.Module) -> list[LabelGuard]:
    """Return the guards in the modules of a model, each once."""
    from label_guard.forward import find_guard

    guards = (find_guard(module) for module in model.modules())
    return list(dict.fromkeys(guard for guard in guards if guard is not None))
