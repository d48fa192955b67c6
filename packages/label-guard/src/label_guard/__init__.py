"""Keep keys that a model does not take out of its ``forward``, and name the code that added them.

Works with any model and any ``Trainer`` subclass. Imports nothing but torch and the standard library.

    from label_guard import LabelGuard, LabelGuardMixin

    class GuardedTrainer(LabelGuardMixin, Trainer): ...     # with a Trainer
    guard = LabelGuard(model)                               # with your own training loop

To read the code, start with ``contract.py``: it is the only module that knows what a label is.
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
    """Import a public name on first use, so that importing the package is cheap."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
