"""What ends a command, as one message and an exit code. All exceptions become messages here.

0     success
1     the run failed, or the machine: a full disk, no permission, too little memory, a bug
2     a mistake in the arguments, the recipe or the data
130   Ctrl-C
143   SIGTERM
"""

import errno
import os
import signal
import sqlite3
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from higgs_trainer.cli.signals import EndedBySignal
from higgs_trainer.errors import HiggsTrainerError, UserError
from higgs_trainer.printable import make_line, make_printable
from label_guard.leak import LabelLeakError

MACHINE, USER = 1, 2

TRACEBACK_VARIABLE = "HIGGS_TRAINER_TRACEBACK"
"""Set this environment variable to see the traceback of any error."""


@dataclass(frozen=True)
class Ending:
    """The message of a command that failed, and its exit code."""

    message: str
    exit_code: int


@dataclass(frozen=True)
class Fault:
    """A fault of the machine: the words by which libraries name it, what it is, and the remedy."""

    words: tuple[str, ...]
    what: str
    remedy: str
    exit_code: int = MACHINE


ANOTHER_PLACE = "Give another place, or change its permissions."

FAULTS = {
    errno.ENOSPC: Fault(
        ("no space left", "disk is full", "os error 28"),
        "the disk is full",
        "Make room, or give another place.",
    ),
    errno.EDQUOT: Fault(
        ("quota exceeded", "os error 122"), "the disk quota is used up", "Make room, or give another place."
    ),
    errno.EFBIG: Fault(
        ("file too large", "os error 27"),
        "a file would be larger than this process may write",
        "Raise the limit (ulimit -f), or give a place on another file system.",
    ),
    errno.EMFILE: Fault(
        ("too many open files", "os error 24"),
        "too many files are open",
        "Raise the limit (ulimit -n 4096).",
    ),
    errno.ENFILE: Fault(("os error 23",), "too many files are open on this machine", "Close other programs."),
    errno.EROFS: Fault(
        ("read-only file system", "readonly database", "os error 30"),
        "this place is read-only",
        ANOTHER_PLACE,
    ),
    errno.EACCES: Fault(("permission denied", "os error 13"), "permission is denied", ANOTHER_PLACE),
    errno.EPERM: Fault(
        ("operation not permitted", "os error 1)"), "the operation is not permitted", ANOTHER_PLACE
    ),
    errno.EIO: Fault(
        ("input/output error", "disk i/o error", "os error 5)"),
        "the disk cannot be read or written",
        "Check the disk, and give another place.",
    ),
    errno.ENOMEM: Fault(
        (
            "cannot allocate memory",
            "can't allocate memory",
            "out of memory",
            "unable to allocate",
            "failed to map segment",
            "bad_alloc",
            "realloc of size",
            "malloc of size",
        ),
        "the memory is exhausted",
        "Make the batches smaller (data.tokens_per_pack in a recipe, --batch-size, --batch-seconds), raise the limit "
        "(ulimit -v), or take a machine with more memory.",
    ),
    errno.EAGAIN: Fault(
        ("can't start new thread", "resource temporarily unavailable"),
        "this process may not start another thread or process",
        "Raise the limit (ulimit -u), or close other programs.",
    ),
    errno.ESTALE: Fault(("stale file handle",), "the network file system has changed", "Run again."),
    errno.ENOTCONN: Fault(("not connected",), "the file system is gone", "Mount it again, and run again."),
    errno.EPIPE: Fault(
        ("broken pipe",),
        "the program that reads the output has ended",
        "Run again with the output to a file, or to a program that reads all of it.",
    ),
    errno.ENOENT: Fault(
        ("no such file or directory",),
        "a file or folder that was needed is not there, or has been removed meanwhile",
        "Put it back, and run again when no other program removes files there.",
    ),
    errno.ENAMETOOLONG: Fault(("file name too long",), "the name is too long", "Give a shorter one.", USER),
    errno.ENOTDIR: Fault(
        ("not a directory",), "a part of the path is not a folder", "Correct the path.", USER
    ),
    errno.EISDIR: Fault(("is a directory",), "it is a folder, not a file", "Give the path of a file.", USER),
    errno.ELOOP: Fault(
        ("too many levels of symbolic links",), "links lead in a circle", "Correct the path.", USER
    ),
}

GPU_MEMORY = Fault(
    ("cuda out of memory", "hip out of memory", "mps backend out of memory", "cublas_status_alloc_failed"),
    "the memory of the GPU is exhausted",
    "To train, halve data.tokens_per_pack and double training.gradient_accumulation_steps, which leaves the loss as it "
    "is, or set training.gradient_checkpointing: true. To generate, give a smaller --batch-size.",
)

EXHAUSTED = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EMFILE,
    errno.ENFILE,
    errno.EIO,
    errno.ENOMEM,
    errno.EAGAIN,
    errno.ESTALE,
    errno.ENOTCONN,
)
"""Faults that no path and no option of the user can cause."""

DAMAGED_DATABASE = ("malformed", "not a database", "file is encrypted", "corrupt")


def describe(error: BaseException, *, kept: str = "") -> Ending:
    """Return the message and the exit code for what ended a command.

    Args:
        kept: what is left after an interruption, for the end of its message.
    """
    chain = list(_list_causes(error))
    if isinstance(error, HiggsTrainerError):
        if isinstance(error, UserError) and (exhaustion := _find_exhaustion(chain)) is not None:
            return exhaustion
        return Ending(_keep_own_lines(str(error)), error.exit_code)
    if isinstance(error, LabelLeakError):
        return Ending(_keep_own_lines(str(error)), MACHINE)
    for link in chain:
        if isinstance(link, KeyboardInterrupt):
            return Ending(f"interrupted.{kept}", 128 + signal.SIGINT)
        if isinstance(link, EndedBySignal):
            return Ending(f"ended by {signal.Signals(link.number).name}.{kept}", 128 + link.number)
    # A library that meets a fault may raise an exception of its own from it.
    for link in chain:
        if isinstance(link, HiggsTrainerError):
            return describe(link)
        if (fault := _find_fault(link)) is not None:
            return Ending(_describe_fault(link, fault), fault.exit_code)
    return Ending(_report_bug(error), MACHINE)


def _find_exhaustion(chain: list[BaseException]) -> Ending | None:
    """Find a fault that is never the user's mistake, although the code that met it took it for one."""
    for link in chain[1:]:
        fault = _find_fault(link)
        if fault is GPU_MEMORY or any(fault is FAULTS[number] for number in EXHAUSTED):
            assert fault is not None
            return Ending(_describe_fault(link, fault), MACHINE)
    return None


def _list_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, then those that it was raised from."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        yield link
        seen.add(id(link))
        link = link.__cause__ or link.__context__


def _find_fault(error: BaseException) -> Fault | None:
    if isinstance(error, OSError) and error.errno in FAULTS:
        return FAULTS[error.errno]
    if isinstance(error, MemoryError):
        return FAULTS[errno.ENOMEM]
    if isinstance(error, UnicodeEncodeError):
        return Fault(
            (), "a name or a text is not UTF-8", "Rename the file or folder, or correct the text.", USER
        )
    if isinstance(error, sqlite3.Error) and any(words in str(error) for words in DAMAGED_DATABASE):
        return Fault((), "a database of the work folder is damaged", "Remove that folder, and run again.")
    # SQLite does not say why.
    if isinstance(error, sqlite3.OperationalError) and "unable to open database file" in str(error):
        return Fault(
            (),
            "a database of the work folder cannot be opened",
            "Raise the limit of open files (ulimit -n 4096), and correct the permissions of that folder.",
        )
    if isinstance(error, OSError | RuntimeError | ImportError | SystemError | sqlite3.Error):
        return _find_words(error)
    # Of other types, only those of libraries. Our own code raises what Python raises, and that is a bug. Libraries in
    # Rust, such as tokenizers, raise Exception itself.
    is_foreign = type(error) is Exception or type(error).__module__.split(".")[0] in WRAPPING_LIBRARIES
    return _find_words(error) if is_foreign else None


WRAPPING_LIBRARIES = ("safetensors", "safetensors_rust", "soundfile", "pyarrow", "datasets", "torch", "PIL")


def _find_words(error: BaseException) -> Fault | None:
    text = str(error).lower()
    # The words of the second list are part of those of the first.
    faults = (GPU_MEMORY, *FAULTS.values())
    return next((fault for fault in faults if any(words in text for words in fault.words)), None)


def _describe_fault(error: BaseException, fault: Fault) -> str:
    place = getattr(error, "filename", None)
    where = f"{make_line(os.fsdecode(place))}: " if isinstance(place, str | bytes | Path) else ""
    detail = make_line(error.strerror if isinstance(error, OSError) and error.strerror else error)
    return f"{where}{fault.what} ({detail[:300] or type(error).__name__}). {fault.remedy}"


def _report_bug(error: BaseException) -> str:
    """Write the traceback to a file, and return the message."""
    summary = f"{type(error).__name__}: {make_line(error)[:300]}"
    text = make_printable("".join(traceback.format_exception(error)))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="higgs-trainer-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
        place = f"the file {file.name}"
    except OSError:
        place = f"its traceback ({TRACEBACK_VARIABLE}=1 shows it)"
    return f"unexpected {summary}. This is a bug in Higgs Trainer: please report it with {place}"


def _keep_own_lines(message: str) -> str:
    """Keep line breaks that indent a list, and escape all others: a file name may contain one, to forge a message."""
    first, *rest = make_printable(message).split("\n")
    return first + "".join(f"\n{line}" if line.startswith("  ") else f"\\n{line}" for line in rest)
