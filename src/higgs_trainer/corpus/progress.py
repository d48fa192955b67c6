"""How `prepare` reports progress."""

from collections.abc import Callable, Iterable
from typing import Any

from higgs_trainer.terminal import open_console

Progress = Callable[[Iterable[Any], str, int | None], Iterable[Any]]
"""Wraps an iterable, given a description and the number of its items if it is known."""


def show_progress(items: Iterable[Any], description: str, total: int | None) -> Iterable[Any]:
    """Draw a progress bar on stderr, or print one line at the end if stderr is not a terminal."""
    from rich.progress import track

    return track(items, description, total=total, console=open_console(to_stderr=True))


def skip_progress(items: Iterable[Any], description: str, total: int | None) -> Iterable[Any]:
    """Draw nothing. All processes but the first use this."""
    return items
