"""init: start a voice from a shipped recipe."""

import json
from pathlib import Path
from typing import Annotated

import typer

from higgs_trainer.cli.application import START_PANEL, app
from higgs_trainer.cli.strict_command import StrictCommand
from higgs_trainer.terminal import COMMAND_INDENT, echo

EXAMPLE_ROW = {"audio": "wavs/0001.wav", "text": "Hello there."}


@app.command(cls=StrictCommand, rich_help_panel=START_PANEL)
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of the voice, such as my_voice.", show_default=False)
    ],
    recipe: Annotated[
        str,
        typer.Option(metavar="NAME", help="Copy this shipped recipe (**higgs-trainer recipes** lists them)."),
    ] = "single_speaker",
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="Your recordings and texts, in any format that prepare reads. Default: DIR/data.jsonl, to be written.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="DIR_OR_NAME",
            help="Train this model, a folder or a hub name. Default: the model of the recipe.",
            show_default=False,
        ),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Use this codec: a folder, a hub name, or 'embedded'. Default: the codec of the model.",
            show_default=False,
        ),
    ] = None,
    language: Annotated[
        str | None,
        typer.Option(
            metavar="LANG",
            help="Language of the recordings, such as nl. The recipe then has no English sample sentences.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Start a voice: write DIR/recipe.yaml from a shipped recipe, and print the commands to run next.

    For example **higgs-trainer init my_voice --data recordings.jsonl**. Nothing is overwritten.
    """
    from higgs_trainer.recipe.new_recipe import start_voice

    voice = start_voice(folder, shipped=recipe, data=data, model=model, codec=codec, language=language)
    echo(f"{voice.recipe}: written, from the recipe {recipe}")
    if not voice.data.exists():
        row = json.dumps(EXAMPLE_ROW if language is None else EXAMPLE_ROW | {"language": language})
        echo(f"First write {voice.data}, one clip a line, with paths relative to it:\n{COMMAND_INDENT}{row}")
    echo("Then run:" if not voice.data.exists() else "Run next:")
    for command in voice.commands:
        echo(f"{COMMAND_INDENT}{command}")
