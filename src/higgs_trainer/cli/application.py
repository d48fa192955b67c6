"""The command line itself: its name, its options, and what becomes of an error."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from higgs_trainer import __version__
from higgs_trainer.distributed import leave_processes
from higgs_trainer.errors import HiggsTrainerError, Terminated
from label_guard.leak import LabelLeakError

if TYPE_CHECKING:
    from rich.console import Console

Dtype = Literal["float32", "bfloat16", "float16"]

ENDED_TOGETHER = (None, 0, Terminated.exit_code)
"""How every process of a run ends at the same place, with none waiting for another."""

app = typer.Typer(
    name="higgs-trainer",
    help="Fine-tune Higgs Audio speech models: no label leaks in, no target leaks in, nothing is lost silently.",
    epilog="Start with **higgs-trainer demo**: the whole thing, offline, on a CPU.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. What this package raises on purpose ends with its message alone.

    Without arguments they are the process's own, and it ends here.

    Exit codes: 0 done, 1 the run failed, 2 a mistake in what the user gave, 143 ended by SIGTERM after saving.
    """
    exit_code = _run(arguments)
    if arguments is None and exit_code in ENDED_TOGETHER:
        leave_processes()
    sys.exit(exit_code)


def _run(arguments: Sequence[str] | None) -> int | str | None:
    """The exit code. Nothing of the run outlives this call."""
    try:
        app(args=arguments)
    except HiggsTrainerError as error:
        _print_error(error)
        return error.exit_code
    except LabelLeakError as error:
        _print_error(error)
        return 1
    except SystemExit as ended:  # typer's own way to end
        return ended.code
    return 0


def _print_error(error: Exception) -> None:
    from rich.console import Console
    from rich.text import Text

    message = Text.assemble(("error: ", "bold red"), str(error))
    Console(stderr=True).print(message, soft_wrap=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"higgs-trainer {__version__}")
        raise typer.Exit


def open_console() -> "Console":
    """Where tables are printed. A file is not folded at 80 columns."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=160)


@app.callback()
def set_options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Options of the command itself."""
