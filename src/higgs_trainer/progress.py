"""Show how far a long task is: a bar on a terminal, and a line every few seconds in a file or a pipe."""

import sys
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from higgs_trainer.terminal import echo, is_terminal, open_console

LINE_SECONDS = 10.0
"""The time between two lines in a file or a pipe, at the beginning of a task."""

LONG_TASK_SECONDS, LONG_TASK_LINE_SECONDS = 600.0, 60.0
"""A task that lasts longer gets a line at longer intervals."""

Track = Callable[[Iterable[Any], str, int | None], Iterable[Any]]
"""Wraps an iterable, given a description and the number of its items if it is known: `track`, or a user's function."""


class ProgressBar:
    """Shows the progress of one task on stderr during a ``with`` block.

    Args:
        description: what is done, such as "encoding".
        total: the number of items, if it is known.
        done: the number of items that were done before, such as the steps of a resumed run.
        stays: whether the full bar is left on the terminal. A bar within the task of another is always removed.
    """

    def __init__(
        self, description: str, total: int | None = None, *, done: int = 0, stays: bool = True
    ) -> None:
        display: _Display
        if is_terminal(sys.stderr):
            display = _Bar(description, total, done, stays=stays)
        else:
            display = _Lines(description, total, done)
        self._display = display
        self.done = done

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def advance(self, count: int = 1) -> None:
        """Count further items as done."""
        self.update(self.done + count)

    def update(self, done: int) -> None:
        """Set the number of items that are done."""
        self.done = done
        self._display.show(done)

    def rest(self) -> None:
        """Say that something else has just been printed about this task, so that no line is due soon."""
        self._display.rest()

    def close(self) -> None:
        """End the display. Later calls have no effect."""
        self._display.close()


def track(
    items: Iterable[Any],
    description: str,
    total: int | None,
    *,
    stays: bool = True,
) -> Iterable[Any]:
    """Yield the items, and show how many are done (`ProgressBar`). Nothing is shown if there are none to come."""
    if total == 0:
        yield from items
        return
    with ProgressBar(description, total, stays=stays) as bar:
        for item in items:
            yield item
            bar.advance()


def skip_progress(items: Iterable[Any], description: str, total: int | None) -> Iterable[Any]:
    """Yield the items and show nothing. All processes but the first use this."""
    return items


def close_bars() -> None:
    """Remove the bars of tasks that an exception has ended. A generator such as `track` may still wait for its end."""
    _Bar.close_all()


class _Display:
    def show(self, done: int) -> None: ...

    def rest(self) -> None: ...

    def close(self) -> None: ...


class _Bar(_Display):
    """A line of the display that all bars of this process share, because a terminal can have only one."""

    _progress: Progress | None = None
    _open = 0

    def __init__(self, description: str, total: int | None, done: int, *, stays: bool) -> None:
        if _Bar._progress is None:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeRemainingColumn(elapsed_when_finished=True),
            )
            _Bar._progress = Progress(
                *columns,
                console=open_console(to_stderr=True),
                # Otherwise text that is printed to a file during the task would go to the terminal.
                redirect_stdout=is_terminal(sys.stdout),
                refresh_per_second=5,
            )
            _Bar._progress.start()
        # A bar below another one would stay in the display until that one is full.
        self._stays = stays and not _Bar._open
        _Bar._open += 1
        self._is_open = True
        self._task: TaskID = _Bar._progress.add_task(description, total=total, completed=done)

    def show(self, done: int) -> None:
        if self._is_open and _Bar._progress is not None:
            _Bar._progress.update(self._task, completed=done)

    def close(self) -> None:
        if not self._is_open or _Bar._progress is None:
            return
        self._is_open = False
        _Bar._open -= 1
        task = _Bar._progress.tasks[_Bar._progress.task_ids.index(self._task)]
        if task.total is None:
            _Bar._progress.update(self._task, total=task.completed)
        if not self._stays:
            _Bar._progress.remove_task(self._task)
        if not _Bar._open:
            _Bar.close_all()

    @classmethod
    def close_all(cls) -> None:
        if cls._progress is not None:
            cls._progress.stop()
        cls._progress, cls._open = None, 0


class _Lines(_Display):
    """Lines such as ``encoding: 120 of 300, 0:01:02 left``. A task that is done before the first line has none."""

    def __init__(self, description: str, total: int | None, done: int) -> None:
        self._description = description
        self._total = total
        self._begun_with = self._done = done
        self._started = self._printed = time.monotonic()
        self._has_printed = False

    def show(self, done: int) -> None:
        self._done = done
        now = time.monotonic()
        is_long = now - self._started > LONG_TASK_SECONDS
        if now - self._printed >= (LONG_TASK_LINE_SECONDS if is_long else LINE_SECONDS):
            self._print(f"{self._count()}{self._estimate(now)}", now)

    def rest(self) -> None:
        self._printed = time.monotonic()

    def close(self) -> None:
        if self._has_printed:
            now = time.monotonic()
            self._print(f"{self._count()} in {_format_seconds(now - self._started)}", now)
            self._has_printed = False

    def _print(self, text: str, now: float) -> None:
        echo(f"{self._description}: {text}", to_stderr=True)
        self._printed, self._has_printed = now, True

    def _count(self) -> str:
        return str(self._done) if self._total is None else f"{self._done} of {self._total}"

    def _estimate(self, now: float) -> str:
        done = self._done - self._begun_with
        if self._total is None or done <= 0:
            return ""
        return f", {_format_seconds((now - self._started) / done * (self._total - self._done))} left"


def _format_seconds(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
