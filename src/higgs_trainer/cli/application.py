"""The command line itself: its name, its global options, and how errors become messages and exit codes."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from higgs_trainer.distributed import leave_processes
from higgs_trainer.errors import HiggsTrainerError, Terminated
from higgs_trainer.version import __version__
from label_guard.leak import LabelLeakError

if TYPE_CHECKING:
    from rich.console import Console

Dtype = Literal["float32", "bfloat16", "float16"]

# The groups in which `-h` lists the commands, in the order of work.
DEMO_PANEL = "Try it"
DATA_PANEL = "Data"
TRAINING_PANEL = "Training"
SPEECH_PANEL = "Speech"
SHARING_PANEL = "Sharing"

SAME_FOR_ALL_RANKS = (None, 0, Terminated.exit_code)
"""Exit codes with which all ranks end at the same point, so that none waits for another."""

app = typer.Typer(
    name="higgs-trainer",
    help="Fine-tune Higgs Audio speech models with the Hugging Face Trainer, PEFT and Accelerate.",
    epilog="Start with **higgs-trainer demo**: it fine-tunes a small model on a CPU, offline, in minutes.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Errors that this package raises on purpose are printed as one message without a traceback. Exit codes: 0 success,
    1 the run failed, 2 an error in the user's input, 143 stopped by SIGTERM after a checkpoint was saved.

    Args:
        arguments: the command line without the program's name. None: that of this process, whose process group is
            destroyed before it exits.
    """
    exit_code = _run(arguments)
    if arguments is None and exit_code in SAME_FOR_ALL_RANKS:
        leave_processes()
    sys.exit(exit_code)


def _run(arguments: Sequence[str] | None) -> int | str | None:
    """Run the command and return its exit code.

    This is a separate function, so that the run's objects are freed before the process group is destroyed.
    """
    try:
        app(args=arguments)
    except HiggsTrainerError as error:
        _print_error(error)
        return error.exit_code
    except LabelLeakError as error:
        _print_error(error)
        return 1
    # typer ends every command with this exception.
    except SystemExit as ended:
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
    """Return the console for tables. When stdout is not a terminal, lines are 160 columns wide instead of 80."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=160)


@app.callback()
def set_options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Define the options that come before a command."""
