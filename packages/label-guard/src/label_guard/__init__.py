"""The label guard: no key reaches a model's ``forward`` that the model does not take, and who put it there is named.

It works alone, on any model and any ``Trainer`` subclass, and imports nothing but torch and the standard library.

    from label_guard import LabelGuard, LabelGuardMixin

    class GuardedTrainer(LabelGuardMixin, Trainer): ...     # all that a Trainer user adds
    guard = LabelGuard(model)                               # all that a loop of one's own needs

Read ``contract.py`` first: it is the only code that knows what a label is.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from label_guard.contract import Contract, ModelInputs, Split
    from label_guard.guard import LabelGuard
    from label_guard.leak import LabelLeakError, Leak
    from label_guard.ledger import Ledger
    from label_guard.mixin import LabelGuardMixin

_HOME = {
    "Contract": "contract",
    "LabelGuard": "guard",
    "LabelGuardMixin": "mixin",
    "LabelLeakError": "leak",
    "Leak": "leak",
    "Ledger": "ledger",
    "ModelInputs": "contract",
    "Split": "contract",
}

__all__ = [
    "Contract",
    "LabelGuard",
    "LabelGuardMixin",
    "LabelLeakError",
    "Leak",
    "Ledger",
    "ModelInputs",
    "Split",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for, so that importing the package costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
