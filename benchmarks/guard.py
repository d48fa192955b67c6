"""Measure what the guard costs: ``python benchmarks/guard.py [--json]``.

Four figures, none of which needs an accelerator:

- a clean call, next to a forward pre-hook that does nothing and other filters. The model does nothing, so that only the
  call is measured.
- a training step of a tiny model with the stock Trainer, with and without the mixin, one step each in turn; first one
  of them starts, then the other. Two stock trainers, timed in the same way, show what such a difference means.
- breaks that the guard adds to the graph of ``torch.compile``.
- the import, after torch.

All times are CPU times, because other programs on the machine disturb these less than wall times. Ways that are
compared are timed in turn, round after round, so that what still disturbs them disturbs all of them alike.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import timeit
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from label_guard import Contract, LabelGuard, LabelGuardMixin

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
    bare, observed, owned, hooked = Idle(), Idle(), Idle(), Idle()
    LabelGuard(observed)
    LabelGuard(owned, CONTRACT)
    hooked.register_forward_pre_hook(pass_on, with_kwargs=True)
    return {
        "bare": bare,
        "observer": observed,
        "contract": owned,
        "prehook": hooked,
        "wrapper": Popping(Idle()),
    }


def time_calls(models: dict[str, nn.Module], rounds: int, calls: int) -> dict[str, float]:
    """Return the microseconds per call of each model: the best of ``rounds`` rounds of ``calls`` calls."""
    batch = {key: torch.ones(1) for key in KEYS}

    def calling(model: nn.Module) -> Callable[[], Any]:
        return lambda: model(**batch)

    timers = {name: timeit.Timer(calling(model), timer=time.process_time) for name, model in models.items()}
    best = dict.fromkeys(timers, float("inf"))
    for _ in range(rounds):
        for name, timer in timers.items():
            best[name] = min(best[name], timer.timeit(calls) / calls * 1e6)
    return best


class TinyNetwork(nn.Module):
    """Two linear layers: a step of it takes hardly more than what Trainer itself does in a step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        predictions = self.layers(x)
        loss = predictions.square().mean() if labels is None else (predictions - labels).square().mean()
        return {"loss": loss, "predictions": predictions}


def build_two_layers() -> tuple[nn.Module, list[dict[str, torch.Tensor]]]:
    """Return a network of two linear layers, and rows for it."""
    return TinyNetwork(), [{"x": torch.randn(8), "labels": torch.randn(1)} for _ in range(80)]


def build_tiny_llama() -> tuple[nn.Module, list[dict[str, torch.Tensor]]]:
    """Return a Llama of two layers, as tests of transformers use it, and rows of 16 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    ids = [torch.randint(0, 64, (16,)) for _ in range(80)]
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads)), [{"input_ids": row, "labels": row} for row in ids]


NETWORKS = {"two linear layers": build_two_layers, "a Llama of two layers": build_tiny_llama}


def time_steps(folder: str, steps: int, name: str, guarded: tuple[bool, bool]) -> list[list[float]]:
    """Train with two trainers, one step each in turn. ``guarded`` says which of them have the mixin.

    Each runs in a thread of its own, so that both go through their whole ``train``. Returns the microseconds of CPU
    time of each step of the first trainer and of the second.
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments

    turns = [threading.Semaphore(1), threading.Semaphore(0)]
    times: list[list[float]] = [[], []]

    class TakeTurns(TrainerCallback):  # type: ignore[misc]
        """Note the time of the step, and let the other trainer take one."""

        def __init__(self, number: int) -> None:
            self.number, self.start = number, 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            times[self.number].append(1e6 * (time.thread_time() - self.start))
            turns[1 - self.number].release()
            turns[self.number].acquire()
            self.start = time.thread_time()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            turns[1 - self.number].release()

    class GuardedTrainer(LabelGuardMixin, Trainer):  # type: ignore[misc]
        """The stock Trainer under the guard."""

    options = {"max_steps": steps, "report_to": [], "save_strategy": "no", "logging_strategy": "no"}
    arguments = TrainingArguments(folder, use_cpu=True, disable_tqdm=True, **options)
    trainers = []
    for number, is_guarded in enumerate(guarded):
        kind = GuardedTrainer if is_guarded else Trainer
        model, rows = NETWORKS[name]()
        trainers.append(kind(model, arguments, train_dataset=rows, callbacks=[TakeTurns(number)]))

    def train(number: int) -> None:
        turns[number].acquire()
        trainers[number].train()

    threads = [threading.Thread(target=train, args=[number]) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def list_added(before: list[float], after: list[float], size: int = 100) -> list[float]:
    """Return what the steps of each hundred take more than those of the other trainer, in percent.

    The fastest quarter of the hundred counts, because the rest is disturbed by other programs.
    """
    return [
        100
        * (average_fastest(after[block : block + size]) / average_fastest(before[block : block + size]) - 1)
        for block in range(0, len(before), size)
    ]


def average_fastest(times: list[float]) -> float:
    """Return the mean of the fastest quarter."""
    return statistics.mean(sorted(times)[: len(times) // 4])


def compare_steps(steps: int, name: str) -> dict[str, float]:
    """Compare a guarded trainer with a stock one, and two stock ones with each other: the median of the blocks."""
    with tempfile.TemporaryDirectory() as folder:
        stock, guarded = time_steps(folder, steps, name, (False, True))
        guarded_first, stock_second = time_steps(folder, steps, name, (True, False))
        control = list_added(*time_steps(folder, steps, name, (False, False)))
    added = list_added(stock, guarded) + list_added(stock_second, guarded_first)
    return {
        "step_us": round(average_fastest(stock), 1),
        "step_added_percent": round(statistics.median(added), 2),
        "step_added_low": round(min(added), 2),
        "step_added_high": round(max(added), 2),
        "step_control_percent": round(statistics.median(control), 2),
    }


def count_graph_breaks() -> int:
    """Return how many breaks Dynamo makes in the graph of a guarded model."""
    model = TinyNetwork()
    LabelGuard(model)
    return int(torch._dynamo.explain(model)(x=torch.ones(2, 8)).graph_break_count)


def time_imports(count: int) -> list[float]:
    """Return the milliseconds that the import of the guard takes after torch, each in a new process."""
    code = (
        "import time, torch; start = time.process_time(); from label_guard import LabelGuard, LabelGuardMixin; "
        "print(1e3 * (time.process_time() - start))"
    )
    command = [sys.executable, "-c", code]
    return sorted(
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(count)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--calls", type=int, default=1000, help="calls in a round")
    parser.add_argument("--steps", type=int, default=2000, help="steps of each trainer")
    parser.add_argument("--imports", type=int, default=5, help="processes that import the guard")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON in the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    micros = time_calls(build_models(), arguments.rounds, arguments.calls)
    hook_adds = micros["prehook"] - micros["bare"]
    print(f"{'':10}{'us a call':>10}{'adds':>8}{'/ pre-hook':>12}")
    for name, value in micros.items():
        added = value - micros["bare"]
        print(f"{name:10}{value:10.2f}{added:8.2f}{added / hook_adds:12.2f}")

    steps = {}
    for name in NETWORKS:
        steps[name] = compare_steps(arguments.steps, name)
        print(
            "{name}, a step of {step_us} us: the mixin adds {step_added_percent}%, from {step_added_low}% to "
            "{step_added_high}% in blocks of 100 steps; a second stock trainer "
            "{step_control_percent:+}%".format(name=name, **steps[name])
        )
    breaks = count_graph_breaks()
    print(f"graph breaks: {breaks}")
    imports = time_imports(arguments.imports)
    print(f"import after torch: {imports[0]:.1f} to {imports[-1]:.1f} ms")
    if arguments.json:
        figures: dict[str, Any] = {f"{name}_us": round(value, 3) for name, value in micros.items()}
        figures["steps"] = steps
        print(json.dumps(figures | {"graph_breaks": breaks, "import_ms": round(imports[0], 1)}))


if __name__ == "__main__":
    main()
