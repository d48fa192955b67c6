"""Say how to set the number of threads on a machine that is busy with other programs."""

import os
import time
from pathlib import Path

from higgs_trainer.terminal import echo

THREADS = "OMP_NUM_THREADS"
LOAD_FILE = Path("/proc/loadavg")
LOOKS, SECONDS_BETWEEN_LOOKS = 4, 0.02


def note_if_busy() -> None:
    """Note that fewer threads may be faster, where the CPU computes and other programs keep its cores busy.

    The number is left as it is, because it decides how sums are rounded: a resumed run must be the same run.
    """
    import torch

    if torch.cuda.is_available() or THREADS in os.environ or not LOAD_FILE.exists():
        return
    note = describe_busy_machine(count_others(), os.cpu_count() or 1, torch.get_num_threads())
    if note:
        echo(note, to_stderr=True)


def count_others() -> int:
    """Count the threads that run now, without this one: the least of some looks. An average knows of past commands."""
    looks = []
    for _ in range(LOOKS):
        # Averages of 1, 5 and 15 minutes, then "running/all".
        looks.append(int(LOAD_FILE.read_text(encoding="ascii").split()[3].partition("/")[0]))
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return max(min(looks) - 1, 0)


def describe_busy_machine(others: int, cores: int, threads: int) -> str:
    """Return a note if fewer cores are free than there are threads; otherwise an empty text."""
    free = max(cores - others, 1)
    if free >= threads:
        return ""
    busy = min(others, cores)
    return (
        f"note: other programs keep {busy} of {cores} cores busy, and this command uses {threads} threads. If it is "
        f"slow, start it with {THREADS}={free}."
    )
