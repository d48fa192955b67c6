"""Find out how much memory the C library needs for a sequence of allocations, gaps included.

On a CPU, glibc keeps freed memory that lies between blocks in use, and takes new memory if no gap is large enough. Its
rules cannot be put into a formula, so a process of its own repeats the allocations of a training step. It writes
nothing into them, so the system gives it almost no memory.
"""

import ctypes
import subprocess
import sys
from array import array
from collections.abc import Sequence

ALIGNMENT = 64
"""torch aligns every tensor to so many bytes."""

Event = int
"""The number of bytes that are allocated, or, if it is negative, -1 - the position of the allocation that is freed."""


class MallocInfo(ctypes.Structure):
    """The answer of glibc's `mallinfo2`."""

    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd a b c d e".split()]


def measure_heap(events: Sequence[Event]) -> int | None:
    """Return the largest memory of a process that makes these allocations. None: the C library is not glibc."""
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        return None
    result = subprocess.run(
        [sys.executable, "-S", "-c", "import sys; exec(sys.argv[1])", _read_own_source()],
        input=array("q", events).tobytes(),
        capture_output=True,
        check=True,
    )
    return int(result.stdout)


def count_most_live(events: Sequence[Event]) -> int:
    """Return the largest number of bytes that are allocated at a time."""
    sizes: list[int] = []
    live = most = 0
    for event in events:
        if event < 0:
            live -= sizes[-1 - event]
        else:
            sizes.append(event)
            live += event
        most = max(most, live)
    return most


def replay(events: Sequence[Event]) -> int:
    """Make the allocations in this process, and return the memory that the C library took for them at most."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = MallocInfo
    libc.free.argtypes = [ctypes.c_void_p]
    blocks: list[ctypes.c_void_p] = []
    sizes: list[int] = []
    live = most_live = peak = 0
    start = _count_taken(libc)
    for event in events:
        if event < 0:
            position = -1 - event
            live -= sizes[position]
            libc.free(blocks[position])
            # So that freeing it again does nothing.
            blocks[position] = ctypes.c_void_p()
            continue
        block = ctypes.c_void_p()
        libc.posix_memalign(ctypes.byref(block), ctypes.c_size_t(ALIGNMENT), ctypes.c_size_t(event))
        blocks.append(block)
        sizes.append(event)
        live += event
        most_live = max(most_live, live)
        # Asking takes long, and the heap is not at its largest with little in it.
        if live > 0.7 * most_live:
            peak = max(peak, _count_taken(libc) - start)
    return peak


def _count_taken(libc: ctypes.CDLL) -> int:
    info = libc.mallinfo2()
    return int(info.arena + info.hblkhd)


def _read_own_source() -> str:
    """Return this module as a program: importing the package would fill the heap before the replay."""
    with open(__file__, encoding="utf-8") as file:
        return (
            file.read()
            + "\nvalues = array('q')\nvalues.frombytes(sys.stdin.buffer.read())\nprint(replay(values))\n"
        )
