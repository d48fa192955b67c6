"""merge, card, convert: turn a training run into a model that others can load."""

from pathlib import Path
from typing import Annotated

import typer

from higgs_trainer.cli.application import SHARING_PANEL, Dtype, app
from higgs_trainer.cli.strict_command import StrictCommand
from higgs_trainer.run_folder import MODEL_CARD_FILE
from higgs_trainer.terminal import echo, echo_next, quiet_libraries, shorten_path

ShardSize = Annotated[
    str, typer.Option(metavar="SIZE", help="Maximum size of one file of weights, such as 5GB.")
]


@app.command(cls=StrictCommand, rich_help_panel=SHARING_PANEL)
def merge(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Output folder of a training run.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Write the merged model to this folder.")
    ],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Base model, a folder or a hub name. Default: the one that the adapter names.",
        ),
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Data type of the written weights. Default: that of the base model.")
    ] = None,
    max_shard_size: ShardSize = "5GB",
) -> None:
    """Merge an adapter into its base model, and write a model that plain transformers loads."""
    from higgs_trainer.sharing.merging import merge_adapter
    from higgs_trainer.sharing.model_card import write_model_card

    quiet_libraries()
    merged = merge_adapter(
        adapter,
        output,
        base=base,
        dtype=dtype,
        max_shard_size=max_shard_size,
        write_card=lambda folder: write_model_card(folder, earlier=adapter, name=output.name),
    )
    echo(f"{output}: merged, in {merged.dtype}")
    if merged.left_out:
        echo(f"left out, because transformers' model has no such weights: {', '.join(merged.left_out)}")
    folder = str(shorten_path(output))
    speak = ["generate", "--model", folder, "--text", "Anything you like.", "-o", f"{folder}-spoken"]
    echo_next("Speak", ["higgs-trainer", *speak])


@app.command(cls=StrictCommand, rich_help_panel=SHARING_PANEL)
def card(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Output folder of a training run or of merge.")
    ],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the model on the hub, for the card's title.")
    ] = None,
) -> None:
    """Rewrite the model card (README.md) of a folder, for example after an evaluation.

    The licence and the note on consent are kept from the old card; everything else is generated again.
    """
    from higgs_trainer.sharing.model_card import write_model_card

    write_model_card(folder, name=name)
    echo(f"{folder / MODEL_CARD_FILE}: written")


@app.command(cls=StrictCommand, rich_help_panel=SHARING_PANEL)
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Folder of a checkpoint in either layout.")
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Write the converted checkpoint to this folder."),
    ],
    max_shard_size: ShardSize = "5GB",
) -> None:
    """Convert a checkpoint from the layout of boson_multimodal to that of transformers, or back."""
    from higgs_trainer.sharing.checkpoint_conversion import convert_checkpoint

    quiet_libraries()
    converted = convert_checkpoint(source, output, max_shard_size=max_shard_size)
    echo(f"{output}: {converted.num_weights} weights, {converted.model_type}")
    if converted.left_out:
        echo(f"left out, because they are computed on loading: {', '.join(converted.left_out)}")
