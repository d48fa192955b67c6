"""merge, card, convert: a model that others can open."""

from pathlib import Path
from typing import Annotated

import typer

from higgs_trainer.cli.application import Dtype, app
from higgs_trainer.run_folder import MODEL_CARD_FILE


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="The folder that training wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="For the merged model.")],
    base: Annotated[
        str | None, typer.Option(metavar="NAME", help="The base model, if it is not where the adapter says.")
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of the weights that are written. Default: the base's own.")
    ] = None,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Of one file of weights.")] = "5GB",
) -> None:
    """Write base and adapter as one model, which plain transformers opens."""
    from higgs_trainer.sharing.merging import merge_adapter
    from higgs_trainer.sharing.model_card import write_model_card

    merged = merge_adapter(
        adapter,
        output,
        base=base,
        dtype=dtype,
        max_shard_size=max_shard_size,
        describe=lambda folder: write_model_card(folder, earlier=adapter, name=output.name),
    )
    typer.echo(f"{output}: merged, in {merged.dtype}")
    if merged.left_out:
        typer.echo(f"left out, for transformers has no place for them: {', '.join(merged.left_out)}")


@app.command()
def card(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What training or merging wrote.")],
    name: Annotated[str | None, typer.Option(metavar="NAME", help="The model's name on the hub.")] = None,
) -> None:
    """Write the model card of a folder anew, from what is in it by now: an evaluation, perhaps.

    The note on consent and the licence that the old card has are kept; the rest is written again.
    """
    from higgs_trainer.sharing.model_card import write_model_card

    write_model_card(folder, name=name)
    typer.echo(f"{folder / MODEL_CARD_FILE}: written")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A checkpoint in either layout.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="For the other layout.")],
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Of one file of weights.")] = "5GB",
) -> None:
    """Turn a checkpoint of Boson's own layout into transformers', or back, weight by weight."""
    from higgs_trainer.sharing.checkpoint_conversion import convert_checkpoint

    converted = convert_checkpoint(source, output, max_shard_size=max_shard_size)
    typer.echo(f"{output}: {converted.num_weights} weights, {converted.model_type}")
    if converted.left_out:
        typer.echo(f"left out, for they are computed: {', '.join(converted.left_out)}")
