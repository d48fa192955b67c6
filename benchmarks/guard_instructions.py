"""Count the instructions that the guard adds to a training step: ``python benchmarks/guard_instructions.py``.

Times of a step as short as that of a tiny model differ by more than the guard, from run to run and from trainer to
trainer. The number of instructions hardly differs. Valgrind counts them (``apt-get install valgrind``), in a process
for each trainer, once with few and once with many steps: the difference is that of the steps alone.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from guard import NETWORKS

FEW = 40


def train(name: str, steps: int, *, guarded: bool) -> None:
    """Train a tiny network, with or without the mixin."""
    from transformers import Trainer, TrainingArguments

    from label_guard import LabelGuardMixin

    class GuardedTrainer(LabelGuardMixin, Trainer):  # type: ignore[misc]
        """The stock Trainer under the guard."""

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, rows = NETWORKS[name]()
    options = {"max_steps": steps, "report_to": [], "save_strategy": "no", "logging_strategy": "no"}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, use_cpu=True, disable_tqdm=True, **options)
        (GuardedTrainer if guarded else Trainer)(model, arguments, train_dataset=rows).train()


def count_instructions(name: str, steps: int, guarded: bool) -> int:
    """Return the instructions of a whole process that trains."""
    # The newest vector instructions are unknown to Valgrind.
    environment = os.environ | {"PYTHONHASHSEED": "0", "ATEN_CPU_CAPABILITY": "default"}
    program = [sys.executable, str(Path(__file__)), "--train", name, "--steps", str(steps)]
    with tempfile.TemporaryDirectory() as folder:
        tool = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out"]
        command = [*tool, *program, *(["--guarded"] if guarded else [])]
        printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stderr
    found = re.search(r"Collected : (\d+)", printed)
    assert found is not None, printed
    return int(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000, help="steps that are counted")
    parser.add_argument("--network", choices=NETWORKS, default=next(iter(NETWORKS)))
    parser.add_argument("--train", choices=NETWORKS, help=argparse.SUPPRESS)
    parser.add_argument("--guarded", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train is not None:
        train(arguments.train, arguments.steps, guarded=arguments.guarded)
        return
    runs = [
        (arguments.network, steps, guarded)
        for guarded in (False, True)
        for steps in (FEW, FEW + arguments.steps)
    ]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        few, many, few_guarded, many_guarded = pool.map(lambda run: count_instructions(*run), runs)
    stock, added = (many - few) / arguments.steps, (many_guarded - few_guarded - many + few) / arguments.steps
    print(
        f"{arguments.network}: {stock:,.0f} instructions a step; the mixin adds {added:,.0f}, {added / stock:.2%}"
    )


if __name__ == "__main__":
    main()
