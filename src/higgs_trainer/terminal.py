"""Print. All that this package prints goes through this module, where control characters become visible escapes.

Names of files, texts of manifests and messages of other libraries can contain sequences that change the title of a
terminal, erase what it shows, or reverse the direction of its text.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from higgs_trainer.printable import make_printable

WIDTH_OF_A_FILE = 160


def echo(text: object, *, to_stderr: bool = False) -> None:
    """Print a text on its own lines."""
    stream = sys.stderr if to_stderr else sys.stdout
    print(make_printable(str(text)), file=stream, flush=True)


class PrintableConsole(Console):
    """A console of rich that shows control characters in whatever it prints: text, tables and progress bars."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render to segments. Those with a ``control`` are rich's own, which move the cursor of a progress bar."""
        for segment in super().render(renderable, options):
            if segment.control is None:
                yield Segment(make_printable(segment.text), segment.style)
            else:
                yield segment


def open_console(*, to_stderr: bool = False) -> Console:
    """Return a console for tables and progress bars.

    Lines that go to a file or a pipe are 160 columns wide, because rich would fold them at 80.
    """
    stream = sys.stderr if to_stderr else sys.stdout
    is_terminal = stream is not None and stream.isatty()
    return PrintableConsole(stderr=to_stderr, width=None if is_terminal else WIDTH_OF_A_FILE)


class _PrintableRecord(logging.LogRecord):
    def getMessage(self) -> str:
        return make_printable(super().getMessage())


def protect_terminal() -> None:
    """Prepare the streams, logs and warnings of this process for the command line.

    Log records and warnings of all libraries become printable, characters that the encoding of a stream lacks become
    escapes, and a stream that was closed is replaced: otherwise the next file that is opened would take its number, and
    receive what is printed.
    """
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    logging.setLogRecordFactory(_PrintableRecord)
    if not getattr(warnings.formatwarning, "is_printable", False):
        warnings.formatwarning = _make_formatter(warnings.formatwarning)


def _make_formatter(format_warning: Any) -> Any:
    def format_printable(*arguments: Any, **options: Any) -> str:
        return make_printable(format_warning(*arguments, **options))

    format_printable.is_printable = True  # type: ignore[attr-defined]
    return format_printable


def _open_closed_streams() -> None:
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number, which is this one.
            os.open(os.devnull, os.O_RDWR)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
