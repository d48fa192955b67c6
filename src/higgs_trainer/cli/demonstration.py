"""demo: fine-tune a small model on packaged recordings, and judge it."""

from pathlib import Path
from typing import Annotated

import typer

from higgs_trainer.busy_machine import note_if_busy
from higgs_trainer.cli.application import START_PANEL, app
from higgs_trainer.cli.strict_command import StrictCommand
from higgs_trainer.terminal import quiet_libraries


@app.command(cls=StrictCommand, rich_help_panel=START_PANEL)
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Write everything to this folder.")
    ] = Path("runs/demo"),
    from_scratch: Annotated[
        bool,
        typer.Option(
            "--from-scratch", help="Train from random weights instead of fine-tuning the base model."
        ),
    ] = False,
) -> None:
    """Fine-tune a small model on recordings of a new voice, judge it, and write a page to listen to.

    It runs offline on a CPU and takes minutes. The model and the recordings are in the package higgs-trainer-demo.
    """
    from higgs_trainer.demo import run_demo

    quiet_libraries()
    note_if_busy()
    run_demo(output, from_scratch=from_scratch)
