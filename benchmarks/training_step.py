"""Measure a training step, ours and others': ``python benchmarks/training_step.py [--json] [--quick]``.

One process, one thread, CPU time; the arms (`training_arms.py`) in turn, round after round, each over the same clips
with the same supervised cells, which is asserted. A ratio is taken within a round; its median and range are printed.

Small: an epoch of Trainer's, end to end (batches, forward, loss, backward, clipping, AdamW). Real width: one layer of
the released model's sizes, forward and backward alone; the time of 28 layers is ``T0 + 28 (T1 - T0)`` from runs without
and with that layer. Efficiency is the floor, useful matmul work at the measured matmul peak, over the time. Useful is
what no way of training can leave out: each real token through its layers, logits at supervised positions, attention
within a clip.
"""

import argparse
import ctypes
import gc
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn
from training_arms import (
    ARMS,
    BATCH_SIZE,
    NUM_CODEBOOKS,
    NUM_CODES,
    Arm,
    Seen,
    Size,
    adapt,
    build_model,
    draw_examples,
)
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from higgs_trainer.dataset.examples import Example

SMALL = Size(hidden=256, intermediate=704, layers=4, heads=4, key_value_heads=2, vocabulary=32_000)
REAL = Size(hidden=3072, intermediate=8192, layers=1, heads=24, key_value_heads=8, vocabulary=32_000)
REAL_LAYERS = 28
# Rows and columns of the matrices that measure the matmul peak.
PEAK_SIZE = 1536
LORA_RANK = 16

# CPU seconds of each arm, one number per round.
Rounds = dict[str, list[float]]


def main() -> None:
    """Print the tables and, with ``--json``, the figures in one last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="the figures as JSON, in the last line")
    parser.add_argument("--quick", action="store_true", help="one round over few clips: to see that it runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=8, help="of 8 clips, in an epoch of the small model")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.batches = 1, 2
    sys.stdout.reconfigure(line_buffering=True)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.logging.set_verbosity_error()

    small = {name: measure_small(name, options.rounds, options.batches) for name in ("full", "lora")}
    real_width = measure_real_width(options.rounds, num_batches=1 if options.quick else 2)
    if options.json:
        print(json.dumps({"small": small, "real_width": real_width}))


def measure_small(mode: str, rounds: int, num_batches: int) -> dict[str, float]:
    """An epoch of each arm, ``rounds`` times; the figures of one mode, ``"full"`` or ``"lora"``."""
    examples = draw_examples(num_batches, SMALL, seed=0)
    models = {}
    for arm in ARMS:
        model = build_model(SMALL, text_head=arm.text_head)
        models[arm.name] = adapt(model) if mode == "lora" else model
    gc.collect()
    # Trainer collects garbage at every start; objects of imported modules need not be searched.
    gc.freeze()
    seconds: Rounds = {arm.name: [] for arm in ARMS}
    peaks, cells, wastes, memory = [], set(), {}, {}
    # The imports of a first training must not count as the memory of an arm.
    for arm in ARMS:
        train_epoch(arm, models[arm.name], examples[:BATCH_SIZE])
    for arm in ARMS:
        memory[arm.name] = measure_peak_memory(lambda arm=arm: train_epoch(arm, models[arm.name], examples))
    for _ in range(rounds):
        peaks.append(measure_matmul_peak())
        for arm in ARMS:
            cpu_seconds, seen = train_epoch(arm, models[arm.name], examples)
            seconds[arm.name].append(cpu_seconds)
            assert sorted(seen.clips) == sorted(example.utterance_id for example in examples), arm.name
            cells.add(seen.cells)
            wastes[arm.name] = 1 - seen.tokens / seen.positions
    assert len(cells) == 1, f"the arms supervised different numbers of cells: {cells}"

    useful = count_useful_flops(examples, SMALL, lora=mode == "lora")
    floor_seconds = useful / statistics.median(peaks)
    print(
        f"\nsmall model, {mode}: {len(examples)} clips, {cells.pop():,} supervised cells, {num_batches} steps"
    )
    print(
        f"matmul peak {statistics.median(peaks) / 1e9:.0f} GFLOP/s; useful {useful / 1e9:.0f} GFLOP", end=""
    )
    print(f"; floor {floor_seconds:.2f} s")
    print("arm         padding   CPU s (range)         clips/s   floor/time   peak MB above the model")
    for arm in ARMS:
        median = statistics.median(seconds[arm.name])
        span = f"({min(seconds[arm.name]):.2f}-{max(seconds[arm.name]):.2f})"
        print(
            f"{arm.name:10}  {wastes[arm.name]:6.1%}   {median:6.2f} {span:14}  {len(examples) / median:7.2f}"
            f"   {floor_seconds / median:9.1%}   {memory[arm.name] / 2**20:8.0f}"
        )
    return {
        "vs_native": print_ratio(seconds, "native"),
        "vs_native_by_length": print_ratio(seconds, "by_length"),
        "vs_community": print_ratio(seconds, "community"),
        "peak_memory_ratio": round(memory["ours"] / memory["native"], 3),
        "matmul_efficiency": round(floor_seconds / statistics.median(seconds["ours"]), 3),
    }


def measure_real_width(rounds: int, num_batches: int) -> dict[str, float]:
    """Forward and backward of full fine-tuning at the released model's width, projected to its 28 layers."""
    examples = draw_examples(num_batches, REAL, seed=1)
    arms = [arm for arm in ARMS if arm.name != "community"]
    seconds: Rounds = {arm.name: [] for arm in arms}
    wastes = {}
    # Our layers change the class of a model's layers, so the other arms have a model of transformers' own.
    ours, others = build_model(REAL), build_model(REAL)
    for _ in range(rounds):
        for arm in arms:
            model = ours if arm.name == "ours" else others
            model.config.num_hidden_layers = 0
            without, _ = time_passes(arm, model, examples)
            model.config.num_hidden_layers = 1
            with_layer, seen = time_passes(arm, model, examples)
            seconds[arm.name].append(without + REAL_LAYERS * (with_layer - without))
            wastes[arm.name] = 1 - seen.tokens / seen.positions
    print(
        f"\nreal width, full, {len(examples)} clips: forward and backward, projected to {REAL_LAYERS} layers"
    )
    for name, values in seconds.items():
        span = f"({min(values):.0f}-{max(values):.0f})"
        print(f"{name:10}  padding {wastes[name]:6.1%}   {statistics.median(values):6.0f} CPU s {span}")
    return {
        "vs_native": print_ratio(seconds, "native"),
        "vs_native_by_length": print_ratio(seconds, "by_length"),
    }


def print_ratio(seconds: Rounds, other: str) -> float:
    """The median over rounds of the other arm's time in ours, printed with its range."""
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds[other], strict=True)]
    median = statistics.median(ratios)
    print(f"{other} / ours: {median:.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
    return round(median, 3)


class Clock(TrainerCallback):
    """CPU seconds of an epoch."""

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self.since = time.process_time()

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        self.cpu_seconds = time.process_time() - self.since


def train_epoch(arm: Arm, model: nn.Module, examples: list[Example]) -> tuple[float, Seen]:
    """One epoch of Trainer's: CPU seconds, and what was seen."""
    seen, clock = Seen([]), Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(arm, model, examples, folder, seen)
        trainer.add_callback(clock)
        trainer.train()
    model.zero_grad()
    return clock.cpu_seconds, seen


def time_passes(arm: Arm, model: nn.Module, examples: list[Example]) -> tuple[float, Seen]:
    """Forward and backward of every batch: CPU seconds, and what was seen."""
    seen = Seen([])
    with tempfile.TemporaryDirectory() as folder:
        # A guard of an arm before would take the labels that this one's model is to see.
        model.__dict__.pop("forward", None)
        model.set_attn_implementation("sdpa")
        trainer = build_trainer(arm, model, examples, folder, seen)
        # Trainer sets this in its loop, and the native arm divides by it.
        trainer.current_gradient_accumulation_steps = 1
        since = time.process_time()
        for batch in trainer.get_train_dataloader():
            trainer.training_step(model, batch)
            model.zero_grad()
        return time.process_time() - since, seen


def build_trainer(arm: Arm, model: nn.Module, examples: list[Example], folder: str, seen: Seen) -> Trainer:
    """The arm's Trainer with transformers' defaults, but for what would write or print."""
    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=1,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=1e-4,
        remove_unused_columns=False,
        label_names=["audio_labels"],
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = arm.build(model, examples, arguments, seen)
    trainer.remove_callback(PrinterCallback)
    return trainer


def measure_matmul_peak() -> float:
    """Floating-point operations a second of the best of five large float32 products."""
    a, b = torch.randn(2, PEAK_SIZE, PEAK_SIZE)
    return 2 * PEAK_SIZE**3 / min(_time(lambda: a @ b) for _ in range(5))


def measure_peak_memory(run: Callable[[], Any]) -> int:
    """Bytes of resident memory that ``run`` takes at most above what was resident before (Linux)."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _read_status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        # Resets the peak of the resident memory.
        file.write("5")
    run()
    return _read_status("VmHWM") - before


def count_useful_flops(examples: list[Example], size: Size, *, lora: bool) -> float:
    """Matmul work of an epoch: a multiply and an add each for the forward, for the gradient of the input and, where it
    is trained, for that of the weight."""
    head_size = size.hidden // size.heads
    key_value = size.key_value_heads * head_size
    in_attention = [(size.hidden, size.hidden), (size.hidden, key_value), (size.hidden, key_value)]
    in_attention.append((size.hidden, size.hidden))
    in_ffn = [(size.hidden, size.intermediate)] * 2 + [(size.intermediate, size.hidden)]
    passes = 2 if lora else 3
    tokens = sum(len(example.input_ids) for example in examples)
    audio_tokens = sum(len(example.columns_PK) for example in examples)
    supervised = sum(int(example.keep_T.sum()) for example in examples)
    linear = 2 * passes * sum(a * b for a, b in in_attention + in_ffn) * tokens * size.layers
    head = 2 * passes * size.hidden * NUM_CODEBOOKS * (NUM_CODES + 2) * supervised
    squares = sum(len(example.input_ids) ** 2 for example in examples)
    # Causal attention computes half of two products.
    attention = 3 * 2 * size.hidden * squares * size.layers
    if not lora:
        return linear + head + attention
    # No gradient is needed below the first layer.
    linear -= 2 * sum(a * b for a, b in in_attention[:3]) * tokens
    adapters = sum(a + b for a, b in in_attention) * tokens + sum(a + b for a, b in in_ffn) * audio_tokens
    return linear + head + attention + 3 * 2 * LORA_RANK * adapters * size.layers


def _time(run: Callable[[], Any]) -> float:
    since = time.process_time()
    run()
    return time.process_time() - since


def _read_status(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
