"""recipes, recipe-schema: list and print the shipped recipes, and print the schema for editors."""

from typing import Annotated

import typer

from higgs_trainer.cli.application import TRAINING_PANEL, app
from higgs_trainer.cli.strict_command import StrictCommand
from higgs_trainer.terminal import echo, open_console


@app.command(cls=StrictCommand, rich_help_panel=TRAINING_PANEL)
def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Recipe to print.", show_default=False)
    ] = None,
) -> None:
    """List the recipes and launch files that come with Higgs Trainer, or print one.

    **higgs-trainer init** copies a recipe with its paths filled in. Save a launch file for accelerate with
    **higgs-trainer recipes launch/ddp > ddp.yaml**.
    """
    from higgs_trainer.recipe.shipped import find_recipes, read_shipped, read_title

    if name is not None:
        echo(read_shipped(name).rstrip("\n"))
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table("recipe", "for", box=None)
    for found, path in find_recipes().items():
        table.add_row(escape(found), escape(read_title(path)))
    open_console().print(table)


@app.command(cls=StrictCommand, rich_help_panel=TRAINING_PANEL)
def recipe_schema() -> None:
    """Print the JSON schema of recipes, with which an editor completes fields and marks mistakes.

    Save it with **higgs-trainer recipe-schema > recipe.schema.json**. The YAML extension of VS Code uses it for every
    recipe whose first line is **# yaml-language-server: $schema=recipe.schema.json**.
    """
    import json

    from higgs_trainer.recipe.editor_schema import build_json_schema

    echo(json.dumps(build_json_schema(), indent=2), is_prose=False)
