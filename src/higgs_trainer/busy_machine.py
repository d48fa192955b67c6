"""Say how to set the number of threads on a machine that is busy with other programs."""

import os

from higgs_trainer.terminal import echo

THREADS = "OMP_NUM_THREADS"


def note_if_busy() -> None:
    """Note that fewer threads may be faster, where the CPU computes and other programs keep its cores busy.

    The number is left as it is, because it decides how sums are rounded: a resumed run must be the same run.
    """
    import torch

    if torch.cuda.is_available() or THREADS in os.environ or not hasattr(os, "getloadavg"):
        return
    note = describe_busy_machine(os.getloadavg()[0], os.cpu_count() or 1, torch.get_num_threads())
    if note:
        echo(note, to_stderr=True)


def describe_busy_machine(load: float, cores: int, threads: int) -> str:
    """Return a note if fewer cores are free than there are threads; otherwise an empty text.

    Args:
        load: how many programs run on average, other than this one.
    """
    free = max(cores - round(load), 1)
    if free >= threads:
        return ""
    return (
        f"note: other programs keep {load:.1f} of {cores} cores busy, and this command uses {threads} threads. If it "
        f"is slow, start it with {THREADS}={free}."
    )
