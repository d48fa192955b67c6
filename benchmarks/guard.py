"""Measure what the guard adds to a clean call, next to other filters: ``python benchmarks/guard.py [--json]``.

The model does nothing, so that only the call is measured. The four ways are timed in turn, round after round, and the
best round of each counts, so that other programs on the machine disturb all of them alike.
"""

import argparse
import json
import timeit
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from label_guard import Contract, LabelGuard

KEYS = (
    "input_ids",
    "attention_mask",
    "position_ids",
    "audio_input_ids",
    "audio_input_ids_mask",
    "logits_to_keep",
)
CONTRACT = Contract("Idle", inputs=frozenset(KEYS), targets=frozenset({"labels", "audio_labels"}))


class Idle(nn.Module):
    """A model with as many inputs as Higgs Audio has in transformers, that does nothing."""

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        audio_input_ids: Any = None,
        audio_input_ids_mask: Any = None,
        logits_to_keep: Any = None,
    ) -> Any:
        return input_ids


class Popping(nn.Module):
    """A filter as people write it by hand: a module around the model that pops the keys of labels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **kwargs: Any) -> Any:
        for key in ("labels", "label", "label_ids"):
            kwargs.pop(key, None)
        return self.model(**kwargs)


def pass_on(module: nn.Module, args: Any, kwargs: Any) -> None:
    """A forward pre-hook that does nothing."""


def build_models() -> dict[str, nn.Module]:
    bare, guarded, hooked = Idle(), Idle(), Idle()
    LabelGuard(guarded, CONTRACT)
    hooked.register_forward_pre_hook(pass_on, with_kwargs=True)
    return {"bare": bare, "guard": guarded, "prehook": hooked, "wrapper": Popping(Idle())}


def time_calls(models: dict[str, nn.Module], rounds: int, calls: int) -> dict[str, float]:
    """Return the microseconds per call of each model: the best of ``rounds`` rounds of ``calls`` calls."""
    batch = {key: torch.ones(1) for key in KEYS}

    def calling(model: nn.Module) -> Callable[[], Any]:
        return lambda: model(**batch)

    timers = {name: timeit.Timer(calling(model)) for name, model in models.items()}
    best = dict.fromkeys(timers, float("inf"))
    for _ in range(rounds):
        for name, timer in timers.items():
            best[name] = min(best[name], timer.timeit(calls) / calls * 1e6)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--calls", type=int, default=1000, help="calls in a round")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON in the last line")
    arguments = parser.parse_args()

    micros = time_calls(build_models(), arguments.rounds, arguments.calls)
    hook_adds = micros["prehook"] - micros["bare"]
    print(f"{'':10}{'us a call':>10}{'adds':>8}{'/ pre-hook':>12}")
    for name, value in micros.items():
        added = value - micros["bare"]
        print(f"{name:10}{value:10.2f}{added:8.2f}{added / hook_adds:12.2f}")
    if arguments.json:
        print(json.dumps({f"{name}_us": round(value, 3) for name, value in micros.items()}))


if __name__ == "__main__":
    main()
