"""Check the arguments that transformers passes to code that we put in place of its own.

transformers' modules pass what they do not name on as ``**kwargs``, so a renamed argument gets lost without an error:
transformers 5.24 renamed ``past_key_values`` to ``cache``, and layers that knew the old name only generated without a
cache. Code that takes the place of transformers' own therefore knows every argument by name, and raises on any other.
"""

from collections.abc import Mapping
from typing import Any

import transformers
from torch import nn

from higgs_trainer.errors import VersionError

# The range in pyproject.toml. docs/decisions/versions.md says how it is raised.
SUPPORTED_TRANSFORMERS = ">=5.21,<5.25"
# `cache` is the cache from transformers 5.24 on; before, it was the cache of paged generation only.
CACHES = ("past_key_values", "cache")
# These change neither what a layer nor what an attention function computes.
WITHOUT_EFFECT = frozenset(
    {
        "layout",
        "num_items_in_batch",
        "output_attentions",
        "output_hidden_states",
        "position_ids",
        "return_dict",
        "row_order",
        "use_cache",
    }
)


def has_cache(kwargs: Mapping[str, Any]) -> bool:
    """Return whether a call has a cache, under either name."""
    return any(kwargs.get(name) is not None for name in CACHES)


def check_known(kwargs: Mapping[str, Any], known: frozenset[str], *, callee: str, remedy: str) -> None:
    """Check that a call has no argument that the callee does not know. An argument that is None is not given.

    Args:
        kwargs: the arguments that the callee does not name.
        known: those of them that it knows.
        callee: the code that was called, for the message.
        remedy: the setting that puts transformers' own code back.

    Raises:
        VersionError: there is such an argument.
    """
    unknown = sorted(name for name in kwargs.keys() - known if kwargs[name] is not None)
    if unknown:
        raise _build_error(
            f"{callee} was called with {', '.join(unknown)}, which it does not know, so its result could be wrong. "
            "Leave the argument out if your code passes it",
            remedy,
        )


def check_modules(module: nn.Module, known: frozenset[str], *, callee: str, remedy: str) -> None:
    """Check that a module has the submodules that the callee, which takes the place of its ``forward``, calls.

    Raises:
        VersionError: there are others.
    """
    found = {name for name, _ in module.named_children()}
    if found != known:
        raise _build_error(
            f"{callee} calls {', '.join(sorted(known))}, but {type(module).__name__} has "
            f"{', '.join(sorted(found))}. Use transformers' own class",
            remedy,
        )


def _build_error(problem: str, remedy: str) -> VersionError:
    return VersionError(
        f'{problem}, install "transformers{SUPPORTED_TRANSFORMERS}" (this is {transformers.__version__}), '
        f"or set {remedy} in the recipe."
    )
