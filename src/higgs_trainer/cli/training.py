"""check, train: check a recipe, and train with it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from higgs_trainer.busy_machine import note_if_busy
from higgs_trainer.cli.application import TRAINING_PANEL, app
from higgs_trainer.cli.strict_command import StrictCommand
from higgs_trainer.errors import count_noun
from higgs_trainer.run_folder import REPORT_FILE
from higgs_trainer.terminal import echo, echo_next, open_console, quiet_libraries, shorten_path

if TYPE_CHECKING:
    from higgs_trainer.run.check import CheckReport

RecipeArgument = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="--FIELD VALUE",
        help="Override fields of the recipe, by name (--learning_rate 1e-4) or by path (--training.seed 1).",
        show_default=False,
    ),
]

OUTCOMES = {
    "none": "[green]passed[/green]",
    "warning": "[bold yellow]warning[/bold yellow]",
    "serious": "[bold red]WARNING[/bold red]",
}
"""How a test that passed is shown, by its severity."""

OVERRIDES = {"ignore_unknown_options": True}


@app.command(cls=StrictCommand, rich_help_panel=TRAINING_PANEL, context_settings=OVERRIDES)
def check(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Check a recipe before training: run real batches through the model and test the labels and the loss.

    The batches go through train, evaluate and predict with a learning rate of 0. Nothing is written. The exit code is 1
    if a check fails.
    """
    from higgs_trainer.recipe.reading import read_recipe

    settings = read_recipe(recipe, overrides or ())
    from higgs_trainer.run.check import check

    quiet_libraries()
    note_if_busy()
    report = check(settings)
    if report.is_main:
        _print_check(report)
    if not report.passed:
        raise typer.Exit(1)
    if report.is_main:
        echo_next("Run next", ["higgs-trainer", "train", recipe, *(overrides or ())])


def _print_check(report: "CheckReport") -> None:
    from rich.markup import escape
    from rich.table import Table

    console = open_console()
    echo(report.guard)
    table = Table("check", "result", "found", box=None)
    for result in report.results:
        outcome = OUTCOMES[result.severity] if result.passed else "[bold red]failed[/bold red]"
        is_clean = result.passed and result.severity == "none"
        found = result.found if is_clean else f"{result.found}; {result.remedy}"
        table.add_row(escape(result.name), outcome, escape(found))
    console.print(table)
    echo(report.trainable)
    if report.loss is not None:
        console.print(f"loss of the first batch: {report.loss:.4f}")
    if report.peak is not None:
        echo(report.peak)


@app.command(cls=StrictCommand, rich_help_panel=TRAINING_PANEL, context_settings=OVERRIDES)
def train(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Start from the beginning although the output folder holds a run, which is kept as NAME.replaced-1.",
        ),
    ] = False,
    allow_changed: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-changed",
            metavar="FIELD",
            help="Let a resumed run change this field, such as training.learning_rate; may be repeated.",
        ),
    ] = None,
) -> None:
    """Train a model as RECIPE describes.

    For example **higgs-trainer train recipe.yaml --learning_rate 1e-4** or, on several GPUs,
    **accelerate launch -m higgs_trainer train recipe.yaml**. The output folder also receives the complete recipe,
    metrics, samples and a report page.
    """
    from higgs_trainer.recipe.reading import read_recipe

    # Read before the slow imports, so that an error in the recipe is reported at once.
    settings = read_recipe(recipe, overrides or ())
    from higgs_trainer.run.train import train

    quiet_libraries()
    note_if_busy()
    summary = train(settings, overwrite=overwrite, allow_changed=allow_changed or ())
    if summary.is_main:
        if summary.num_steps:
            echo(summary.guard)
        trained = count_noun(summary.num_steps, "step")
        already = "nothing was left to train: the checkpoint is that of the last step"
        folder = shorten_path(Path(summary.output_dir))
        echo(f"{folder}: {f'{trained} trained' if summary.num_steps else already}")
        if (page := Path(summary.output_dir) / REPORT_FILE).is_file():
            echo(f"Listen: {shorten_path(page)}")
        speak = ["generate", "--model", str(folder), "--text", summary.sentence]
        speak += ["--language", summary.language] if summary.language != "en" else []
        echo_next("Speak", ["higgs-trainer", *speak, "-o", f"{folder}-spoken"])
