"""Print. All that this package prints goes through this module, where control characters become visible escapes.

Names of files, texts of manifests and messages of other libraries can contain sequences that change the title of a
terminal, erase what it shows, or reverse the direction of its text.
"""

import logging
import os
import shlex
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from higgs_trainer.printable import make_printable

WIDTH_OF_A_FILE = 160

COMMAND_INDENT = "    "
"""Lines with this indent are never wrapped, so that a command can be copied as one line."""

LABEL_STYLES = {"error:": "bold red", "warning:": "bold yellow"}
"""The colours of a first word, by its meaning."""


def echo(text: object, *, to_stderr: bool = False, is_prose: bool = True) -> None:
    """Print a text on its own lines.

    On a terminal, prose is wrapped between words and a first word of `LABEL_STYLES` has a colour. Elsewhere, each line
    is printed as it is.
    """
    stream = sys.stderr if to_stderr else sys.stdout
    printable = make_printable(str(text))
    if not is_prose or not is_terminal(stream):
        print(printable, file=stream, flush=True)
        return
    console = open_console(to_stderr=to_stderr)
    with console.capture() as capture:
        for line in _wrap(printable, console.width):
            shown = Text(line)
            if style := LABEL_STYLES.get(label := line.partition(" ")[0]):
                shown.stylize(style, 0, len(label))
            console.print(shown, soft_wrap=True, highlight=False)
    # Not by the console, which would write into a progress bar instead of above it.
    print(capture.get(), end="", file=stream, flush=True)


def _wrap(text: str, width: int) -> Iterator[str]:
    """Wrap lines between words, with a hanging indent. A word that is longer than a line is not broken."""
    for line in text.split("\n"):
        if line.startswith(COMMAND_INDENT) or len(line) <= width:
            yield line
            continue
        indent = " " * (len(line) - len(line.lstrip(" ")) + 2)
        yield from textwrap.wrap(
            line,
            width,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
            expand_tabs=False,
            replace_whitespace=False,
        )


def format_command(*words: str | Path) -> str:
    """Return a command on a line of its own, quoted for a shell and indented so that `echo` does not wrap it.

    A `Path` in the working directory is shortened.
    """
    return COMMAND_INDENT + shlex.join(
        str(shorten_path(word)) if isinstance(word, Path) else word for word in words
    )


def shorten_path(path: Path) -> Path:
    """Return a path that is inside the working directory relative to it, and any other path as it is."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def echo_next(what: str, *commands: Sequence[str | Path]) -> None:
    """Print what the user may do next, and the commands for it, each on a line of its own."""
    echo("\n".join([f"{what}:", *(format_command(*command) for command in commands)]))


def find_width() -> int | None:
    """Return how many columns a line on stdout may have. None: any number, because stdout is not a terminal."""
    return open_console().width if is_terminal(sys.stdout) else None


def is_terminal(stream: Any) -> bool:
    """Whether a stream is shown on a terminal. A closed one is not."""
    try:
        return stream is not None and bool(stream.isatty())
    except ValueError:
        return False


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
    return PrintableConsole(stderr=to_stderr, width=None if is_terminal(stream) else WIDTH_OF_A_FILE)


HIDDEN_WARNINGS: tuple[dict[str, Any], ...] = (
    # PEFT reads a property that transformers has renamed.
    {"category": FutureWarning, "module": r"transformers\."},
    # PEFT looks for the base model's config by the relative path in an adapter. Our vocabularies never change.
    {"category": UserWarning, "module": r"peft\.", "message": "Could not find a config file in "},
)


QUIET_LOGGERS = ("bitsandbytes.backends.cpu.ops",)
"""Loggers that warn, when a library is imported, of something that these commands do not use."""


def quiet_libraries() -> None:
    """Turn off the progress bars of transformers, except those of downloads on a terminal.

    Commands call this after their slow imports.
    """
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    show_downloads = is_terminal(sys.stderr) and not are_progress_bars_disabled()
    disable_progress_bar()
    if show_downloads:
        enable_progress_bars()


class _PrintableRecord(logging.LogRecord):
    def getMessage(self) -> str:
        return make_printable(super().getMessage())


def protect_terminal() -> None:
    """Prepare the streams, logs and warnings of this process for the command line.

    Log records and warnings of all libraries become printable, characters that the encoding of a stream lacks become
    escapes, and a stream that was closed is replaced: otherwise the next file that is opened would take its number, and
    receive what is printed. Warnings of libraries about calls between libraries are hidden, unless Python was started
    with ``-W`` or PYTHONWARNINGS.
    """
    _open_closed_streams()
    if not sys.warnoptions:
        for options in HIDDEN_WARNINGS:
            warnings.filterwarnings("ignore", **options)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    logging.setLogRecordFactory(_PrintableRecord)
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
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
