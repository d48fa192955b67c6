"""recipes, recipe-schema: list and copy the shipped recipes, and print the schema for editors."""

from pathlib import Path
from typing import Annotated

import typer

from higgs_trainer.cli.application import TRAINING_PANEL, app
from higgs_trainer.cli.strict_command import StrictCommand
from higgs_trainer.errors import UserError
from higgs_trainer.terminal import echo, open_console


@app.command(cls=StrictCommand, rich_help_panel=TRAINING_PANEL)
def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Recipe to copy.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="File to write. Default: NAME.yaml.", show_default=False
        ),
    ] = None,
) -> None:
    """List the recipes that come with Higgs Trainer, or copy one to start from.

    For example **higgs-trainer recipes single_speaker**. A file that exists is never overwritten.
    """
    from higgs_trainer.recipe.shipped import copy_recipe, find_recipes, read_title

    if name is not None:
        echo(f"{copy_recipe(name, output)}: written")
        return
    if output is not None:
        raise UserError("--output needs the name of a recipe. Write higgs-trainer recipes NAME -o FILE.")
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
