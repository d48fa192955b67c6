"""Run a training script with every model that it trains guarded: ``python -m label_guard train.py ARGS``."""

from __future__ import annotations

import argparse
import atexit
import logging
import os
import sys
from collections.abc import Sequence

from label_guard.guarded_run import GuardedRun
from label_guard.launch import hook_trainers
from label_guard.leak import POLICIES
from label_guard.run_report import describe_run, format_run, is_reporting_process, write_json
from label_guard.script import run_module, run_script

DESCRIPTION = """
Run a training script, and keep keys that a model does not take out of its forward. Every model is guarded that a
Trainer of transformers trains or that an Accelerator prepares in this process. The script is not edited. At the end,
rank 0 prints what was found to the standard error output.
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the options before the script."""
    parser = argparse.ArgumentParser(
        prog="python -m label_guard",
        usage="%(prog)s [options] SCRIPT [ARGS ...]\n       %(prog)s [options] -m MODULE [ARGS ...]",
        description=DESCRIPTION,
        allow_abbrev=False,
    )
    policies = "; ".join(f"{name}: {what}" for name, what in POLICIES.items())
    parser.add_argument("--policy", choices=POLICIES, default="divert", help=policies)
    parser.add_argument(
        "--diagnose", dest="policy", action="store_const", const="watch", help="the same as --policy watch"
    )
    parser.add_argument("--report", metavar="FILE", help="write what was found to a JSON file, too")
    parser.add_argument("-m", dest="module", metavar="MODULE", help="run a module in place of a script")
    parser.add_argument("script", nargs="?", metavar="SCRIPT", help="the script to run")
    return parser


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the options before the script. All that follows the script belongs to it."""
    parser = make_parser()
    num_own = _count_own(argv)
    arguments = parser.parse_args(argv[:num_own])
    arguments.rest = list(argv[num_own:])
    if arguments.script is None and arguments.module is None:
        parser.error("name the script to run, for example: python -m label_guard train.py")
    if arguments.script is not None and not os.path.isfile(arguments.script):
        parser.error(f"{arguments.script} is not a file")
    if arguments.report is not None:
        path = os.path.abspath(arguments.report)
        if os.path.isdir(path):
            parser.error(f"--report {path} is a folder. Name a file")
        if not os.path.isdir(os.path.dirname(path)):
            parser.error(f"--report {path}: its folder does not exist")
    return arguments


def _count_own(argv: Sequence[str]) -> int:
    """Return how many of the arguments belong to this program: up to the script, or to the module after ``-m``."""
    index = 0
    while index < len(argv):
        if argv[index].startswith("-m"):
            return index + (2 if argv[index] == "-m" else 1)
        if not argv[index].startswith("-"):
            return index + 1
        index += 2 if argv[index] in ("--policy", "--report") else 1
    return index


def finish(run: GuardedRun, command: list[str], report: str | None, process: int) -> None:
    """Print what the guards found, and write the report, in the process that ran the script and at rank 0."""
    if os.getpid() != process or not is_reporting_process():
        return
    print(f"\n{format_run(run)}", file=sys.stderr)
    if report is not None:
        write_json(report, describe_run(run, command))


def main() -> None:
    """Run the script of the command line. Its exceptions and its exit code are those of this process."""
    arguments = parse_arguments(sys.argv[1:])
    _log_to_stderr()
    run = GuardedRun(arguments.policy)
    command = [arguments.script or arguments.module, *arguments.rest]
    report = arguments.report and os.path.abspath(arguments.report)
    # The first function that is registered runs last: after the script's own, and after its traceback.
    atexit.register(finish, run, command, report, os.getpid())
    hook_trainers(run)
    if arguments.module is not None:
        run_module(arguments.module, arguments.rest)
    else:
        run_script(arguments.script, arguments.rest)


def _log_to_stderr() -> None:
    """Log apart from the script, whose own logging may go to the standard output."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("label-guard: %(message)s"))
    logger = logging.getLogger("label_guard")
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False


if __name__ == "__main__":
    main()
