"""check, train, demo: what a recipe says."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from higgs_trainer.cli.application import app, open_console

if TYPE_CHECKING:
    from higgs_trainer.run.train import CheckReport

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML recipe.", show_default=False)]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="--FIELD VALUE",
        help="Fields to set over the recipe: by name, or by dotted path as in --training.seed 1.",
        show_default=False,
    ),
]


OVERRIDES = {"ignore_unknown_options": True}


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where it is written.")
    ] = Path("runs/demo"),
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train the small model from random weights.")
    ] = False,
) -> None:
    """Teach a small model a new voice and listen: minutes, offline, on a CPU."""
    from higgs_trainer.demo import run_demo

    run_demo(output, from_scratch=from_scratch)


@app.command(context_settings=OVERRIDES)
def check(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Send real batches through train, evaluate and predict, and print what was seen. Nothing is written."""
    from higgs_trainer.recipe.schema import read_recipe

    settings = read_recipe(recipe, overrides or ())
    from higgs_trainer.run.train import check

    report = check(settings)
    _print_check(report)
    if not report.passed:
        raise typer.Exit(1)


def _print_check(report: "CheckReport") -> None:
    from rich.markup import escape
    from rich.table import Table

    console = open_console()
    console.print(report.cascade, markup=False, highlight=False, soft_wrap=True)
    table = Table("check", "result", "found", box=None)
    for result in report.results:
        outcome = "[green]passed[/green]" if result.passed else "[bold red]failed[/bold red]"
        found = result.found if result.passed else f"{result.found}. {result.remedy}"
        table.add_row(escape(result.name), outcome, escape(found))
    console.print(table)
    console.print(report.trainable, markup=False, highlight=False, soft_wrap=True)
    if report.loss is not None:
        console.print(f"loss of the first batch: {report.loss:.4f}")


@app.command(context_settings=OVERRIDES)
def train(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Train what RECIPE says. The output folder keeps the full recipe that ran.

    For example **higgs-trainer train recipe.yaml --learning_rate 1e-4**; on several GPUs
    **accelerate launch -m higgs_trainer train recipe.yaml**.
    """
    from higgs_trainer.recipe.schema import read_recipe

    settings = read_recipe(
        recipe, overrides or ()
    )  # before the heavy imports: a typing mistake shows at once
    from higgs_trainer.run.train import train

    summary = train(settings)
    if summary.is_main:
        typer.echo(summary.cascade)
        typer.echo(f"{summary.output_dir}: done")
