"""The processes that one run is spread over: one alone, or those of `accelerate launch` and `torchrun`."""

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

PATIENCE = timedelta(days=30)  # one process may encode for days after another has finished


@dataclass(frozen=True)
class Processes:
    """This process and how many there are. Process 0 does what is done once."""

    index: int = 0
    count: int = 1
    _state: Any = None

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def wait(self) -> None:
        """Until every process has come here."""
        if self.count > 1:
            self._state.wait_for_everyone()

    def share(self, make: Callable[[], T]) -> T:
        """What process 0 makes, in all of them. Where it raises an error of this package, all of them raise."""
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
            raise UserError("process 0 stopped; its message says why")
        return value


@contextmanager
def join_processes() -> Iterator[Processes]:
    """The processes that a launcher started, found by accelerate; this one alone without a launcher."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    import torch
    from accelerate import PartialState

    joined_before = torch.distributed.is_initialized()
    # Without being told so, accelerate takes two processes on a machine without a GPU for two strangers.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    try:
        yield Processes(state.process_index, state.num_processes, state)
    finally:
        if not joined_before:
            leave_processes()
            PartialState._reset_state()


def leave_processes() -> None:
    """End the group of processes, if this one is in any, and with it the group's threads.

    A gloo thread that frees a finished all-reduce while Python ends aborts the process (SIGABRT), upon which the
    launcher ends the others, also one that is still writing. Call it where nothing waits for another process and
    nothing uses the group any more.
    """
    torch = sys.modules.get("torch")  # who has not imported it is in no group
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    gc.collect()  # a trainer is a cycle, and what it holds of the group would keep the threads
    torch.distributed.destroy_process_group()
