"""report: write pages about training runs."""

from pathlib import Path
from typing import Annotated

import typer

from higgs_trainer.cli.application import SPEECH_PANEL, app
from higgs_trainer.cli.strict_command import StrictCommand
from higgs_trainer.errors import UserError
from higgs_trainer.run_folder import REPORT_FILE
from higgs_trainer.terminal import echo


@app.command(cls=StrictCommand, rich_help_panel=SPEECH_PANEL)
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Output folders of training runs.", show_default=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write the page to this file. Default for a single run: report.html in its folder.",
        ),
    ] = None,
) -> None:
    """Write an HTML page about one run, or about several runs side by side.

    The page has audio players, training curves, the guard's report, the data and the recipe. It is one file that
    contains its audio and loads nothing from the network. If a folder lacks a part, the page says so.
    """
    from higgs_trainer.report.run_page import write_report

    if output is None and len(runs) > 1:
        raise UserError("A page about several runs needs a file to be written to; give --output FILE.")
    written = write_report(runs, output or runs[0] / REPORT_FILE)
    echo(f"{written.path}: {written.size_bytes / 1e6:.1f} MB")
    for note in written.notes:
        echo(f"note: {note}")
