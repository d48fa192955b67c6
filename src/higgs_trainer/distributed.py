"""The processes of one run: a single one, or those that `accelerate launch` or `torchrun` started."""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from higgs_trainer.errors import HiggsTrainerError, UserError

T = TypeVar("T")

# One process may still encode for days after another has finished.
TIMEOUT = timedelta(days=30)


@dataclass(frozen=True)
class Processes:
    """The rank of this process and the world size. Process 0 does what must be done once."""

    index: int = 0
    count: int = 1
    _state: Any = None

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def wait(self) -> None:
        """Block until every process has called this (a barrier)."""
        if self.count > 1:
            self._state.wait_for_everyone()

    def share(self, make: Callable[[], T]) -> T:
        """Call ``make`` in process 0 and broadcast its result.

        If ``make`` raises an error of this package, all processes raise.

        Raises:
            UserError: in the other processes, if ``make`` failed in process 0.
        """
        if self.count == 1:
            return make()
        from accelerate.utils import broadcast_object_list

        made: list[Any] = [None, False]
        error: HiggsTrainerError | None = None
        if self.is_first:
            try:
                made = [make(), True]
            except HiggsTrainerError as raised:
                error = raised
        value, is_made = broadcast_object_list(made)
        if error is not None:
            raise error
        if not is_made:
            raise UserError("process 0 failed. See its error message.")
        return value

    def find_failed(self, succeeded: bool) -> list[int]:
        """Return the ranks of the processes that pass False. Every process must call this."""
        if self.count == 1:
            return [] if succeeded else [0]
        from accelerate.utils import gather_object

        return [rank for rank, value in enumerate(gather_object([succeeded])) if not value]


def is_first_process() -> bool:
    """Return whether a launcher started this process as the first one, or none did. No process group is needed."""
    return int(os.environ.get("RANK", "0")) == 0


def is_first_of_machine() -> bool:
    """Return whether a launcher started this process as the first one of its machine, or none did."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def find_processes() -> Processes:
    """Return the processes of the group that this one has joined. In no group, this process is the only one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return Processes()
    from accelerate import PartialState

    state = PartialState()
    return Processes(state.process_index, state.num_processes, state)


def join_processes(timeout: timedelta = TIMEOUT, *, use_cpu: bool = False) -> Processes:
    """Join the processes that a launcher started. Without a launcher, this process is the only one.

    Join before anything is loaded: each process then has a GPU of its own, which "cuda" means from then on.

    Args:
        timeout: how long a process waits for the others before it is an error.
        use_cpu: leave the GPUs alone.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    import torch
    from accelerate import PartialState

    # Pass cpu=True: without GPUs, accelerate does not form a process group by itself.
    state = PartialState(cpu=use_cpu or not torch.cuda.is_available(), timeout=timeout)
    return Processes(state.process_index, state.num_processes, state)


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the processes for a block, and leave the group after it, unless this process was in one before."""
    joined_before = find_processes().count > 1
    processes = join_processes()
    try:
        yield processes
    finally:
        if processes.count > 1 and not joined_before:
            from accelerate import PartialState

            leave_processes()
            PartialState._reset_state()


def leave_processes() -> None:
    """Destroy the process group, if there is one, and its threads.

    Call this when no process waits for another one and nothing uses the group any more. Otherwise a gloo thread that
    frees a finished all-reduce during interpreter shutdown can abort the process (SIGABRT), and the launcher then kills
    the others, even while they write.
    """
    # A process that has not imported torch is in no group.
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    # A trainer is a reference cycle. What it holds of the group would keep the threads alive.
    gc.collect()
    torch.distributed.destroy_process_group()
