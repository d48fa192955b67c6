"""The command line itself: its name, its global options, and how errors become messages and exit codes."""

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal

import typer
from typer.main import get_command

from higgs_trainer.cli.faults import TRACEBACK_VARIABLE, Ending, describe
from higgs_trainer.cli.interruption import describe_what_is_kept
from higgs_trainer.cli.signals import ignore_signals, raise_on_signals
from higgs_trainer.distributed import is_first_process, leave_processes
from higgs_trainer.errors import Terminated, UserError, shorten
from higgs_trainer.progress import close_bars
from higgs_trainer.terminal import echo, protect_terminal
from higgs_trainer.version import __version__

Dtype = Literal["float32", "bfloat16", "float16"]

# The groups in which `-h` lists the commands, in the order of work.
START_PANEL = "Start"
DATA_PANEL = "Data"
TRAINING_PANEL = "Training"
SPEECH_PANEL = "Speech"
SHARING_PANEL = "Sharing"

PROGRAM = "higgs-trainer"

# typer brings its own copy of click, or uses the installed one. ClickException is the base of all errors of usage.
USAGE_ERROR: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name=PROGRAM,
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

    Whatever ends a command is printed as one message without a traceback (``faults.py``, which lists the exit codes).

    Args:
        arguments: the command line without the program's name. None: that of this process, whose process group is
            destroyed before it exits.
    """
    protect_terminal()
    is_last = arguments is None
    exit_code, is_same_for_all_ranks = _run(sys.argv[1:] if arguments is None else arguments, is_last=is_last)
    if is_last and is_same_for_all_ranks:
        leave_processes()
    sys.exit(exit_code)


def _run(arguments: Sequence[str], *, is_last: bool) -> tuple[int, bool]:
    """Run the command. Return its exit code, and whether all ranks end at the same point, so that none waits.

    This is a separate function, so that the run's objects are freed before the process group is destroyed.

    Args:
        is_last: the process ends after it.
    """
    with raise_on_signals(until_exit=is_last):
        try:
            exit_code = _call_command(arguments)
            # A full disk or a closed pipe may show only now.
            sys.stdout.flush()
            is_same_for_all_ranks = exit_code == 0
        except BaseException as error:  # noqa: BLE001 - no exception may leave a command.
            ignore_signals()
            close_bars()
            ending = describe(error, kept=describe_what_is_kept(arguments))
            exit_code = ending.exit_code
            is_same_for_all_ranks = isinstance(error, Terminated)
            if is_first_process() or not is_same_for_all_ranks:
                _print_ending(ending, error)
    _discard_unwritable_output()
    return exit_code, is_same_for_all_ranks


def _call_command(arguments: Sequence[str]) -> int:
    """Parse the arguments and call the command. typer's own ``main`` would print other messages, and exit."""
    command = get_command(app)
    try:
        with command.make_context(PROGRAM, list(arguments)) as context:
            command.invoke(context)
    except typer.Exit as ended:
        return ended.exit_code
    except USAGE_ERROR as error:
        # Without arguments, `make_context` has printed the help.
        if message := str(error.format_message()).strip():
            path = error.ctx.command_path if error.ctx is not None else PROGRAM
            raise UserError(f"{shorten(message, 500)} ({path} --help lists the arguments)") from None
        return UserError.exit_code
    return 0


def _print_ending(ending: Ending, error: BaseException) -> None:
    """Print the message, and the traceback if it is asked for. It may be stderr that failed."""
    with suppress(OSError, ValueError):
        if os.environ.get(TRACEBACK_VARIABLE):
            echo("".join(traceback.format_exception(error)), to_stderr=True, is_prose=False)
        echo(f"error: {ending.message}", to_stderr=True)


def _discard_unwritable_output() -> None:
    """Flush the streams. Let one that cannot be written lead nowhere: Python would fail when it flushes it at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _print_version(wanted: bool) -> None:
    if wanted:
        echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def set_options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Define the options that come before a command."""
