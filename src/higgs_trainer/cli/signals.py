"""End a command by an exception when a signal arrives, so that it removes what it has not finished."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

TERMINATING = (signal.SIGTERM,) if sys.platform == "win32" else (signal.SIGTERM, signal.SIGHUP)
LATER_SECONDS = 0.01


class EndedBySignal(BaseException):
    """A signal asked this process to end. Like KeyboardInterrupt, it is no ``Exception``: no library catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def raise_on_signals(*, until_exit: bool = False) -> Iterator[None]:
    """Within the block, raise `EndedBySignal` when SIGTERM or SIGHUP arrives. An ignored signal stays ignored.

    Args:
        until_exit: the process ends after the block, so ignore later signals: it must not be interrupted twice.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    default = [number for number in TERMINATING if signal.getsignal(number) is signal.SIG_DFL]
    interrupt = signal.getsignal(signal.SIGINT)
    hook = sys.unraisablehook
    sys.unraisablehook = _raise_again(hook)
    for number in default:
        signal.signal(number, _end)
    try:
        yield
    finally:
        if until_exit:
            ignore_signals()
        else:
            signal.signal(signal.SIGINT, interrupt)
            for number in default:
                signal.signal(number, signal.SIG_DFL)
            sys.unraisablehook = hook


def ignore_signals() -> None:
    """Ignore the signals that end a command, because it is ending already."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, *TERMINATING):
            signal.signal(number, signal.SIG_IGN)


def _end(number: int, frame: FrameType | None) -> None:
    raise EndedBySignal(number)


def _raise_again(hook: Any) -> Any:
    """Build a hook for exceptions in destructors, where Python would print and then forget the end of the command.

    The signal is sent again a little later, when the destructor has ended.
    """

    def handle(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not isinstance(error, KeyboardInterrupt | EndedBySignal):
            hook(unraisable)
            return
        number = error.number if isinstance(error, EndedBySignal) else signal.SIGINT
        again = threading.Timer(LATER_SECONDS, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()

    return handle
