"""plan: predict the memory and the time of a recipe."""

from typing import TYPE_CHECKING, Annotated

import typer

from higgs_trainer.cli.application import TRAINING_PANEL, app
from higgs_trainer.cli.strict_command import StrictCommand
from higgs_trainer.cli.training import OVERRIDES, OverridesArgument, RecipeArgument
from higgs_trainer.terminal import COMMAND_INDENT, echo, open_console, quiet_libraries

if TYPE_CHECKING:
    from higgs_trainer.planning.plan import Plan


@app.command(cls=StrictCommand, rich_help_panel=TRAINING_PANEL, context_settings=OVERRIDES)
def plan(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE|NAME",
            help="GPU to train on: its memory, such as 24GB, or a name, such as 4090 or H100, for the time as well.",
        ),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, max=4096, help="Number of GPUs that share the work.")] = 1,
    json_line: Annotated[
        bool, typer.Option("--json", help="Print all figures as one JSON object on the last line.")
    ] = False,
) -> None:
    """Predict the memory and the time of a recipe before anything is loaded.

    For example **higgs-trainer plan recipe.yaml --gpu 24GB**. If the recipe does not fit, the lines of it that must
    change are printed. A step of the real code is counted without weights, so only the model's configuration and its
    tokenizer are needed. Figures are predictions; none was measured on a GPU.
    """
    from higgs_trainer.recipe.reading import read_recipe

    settings = read_recipe(recipe, overrides or ())
    from higgs_trainer.planning.gpus import find_gpu

    found = None if gpu is None else find_gpu(gpu)
    from higgs_trainer.planning.plan import plan_run

    quiet_libraries()
    made = plan_run(settings, gpu=found, num_gpus=gpus)
    print_plan(made)
    if json_line:
        import json

        echo(json.dumps(made.as_dict()), is_prose=False)


def print_plan(made: "Plan") -> None:
    """Print a plan, on one screen of 80 columns."""
    from rich.table import Table

    shape = made.work.shape
    batch = f"packs of {shape.tokens:,} tokens" if shape.is_packed else f"batches of {shape.tokens:,} tokens"
    assumed = "" if made.is_prepared else "; the data is not prepared, so full packs are assumed"
    echo(f"{made.model}: {batch}{assumed}")
    echo(f"{made.trained:,} of {made.parameters:,} parameters are trained")
    table = Table("memory at the peak", "GB", box=None)
    table.columns[1].justify = "right"
    for part, number in made.memory.parts.items():
        table.add_row(part, f"{number / 1e9:.2f}")
    table.add_row("together", f"{made.memory.total / 1e9:.2f}")
    open_console().print(table)
    echo(f"The peak is in: {made.memory.region}.")
    if made.memory.strategy:
        echo(f"On each of {made.num_gpus} GPUs, by {made.memory.strategy}.")
    _print_fit(made)
    _print_time(made)
    echo("Predicted by counting a step of the code, not measured on a GPU.")


def _print_fit(made: "Plan") -> None:
    if made.gpu is None:
        for size, tokens in made.largest_packs.items():
            echo(f"{size:>4g} GB: {_describe_packs(tokens)}")
        return
    name = made.gpu.name if "GB" in made.gpu.name else f"{made.gpu.name} ({made.gpu.memory_gb:g} GB)"
    if made.fits:
        echo(f"It fits on a {name}: {_describe_packs(made.largest_packs.get(made.gpu.memory_gb))}")
        if (without := made.largest_pack_unchecked) and without >= made.work.longest:
            echo(
                f"gradient_checkpointing: false is a third faster, and fits up to {without:,} tokens a pack."
            )
        return
    echo(f"It does not fit on a {name}. Changes, in the order of what they cost:")
    limit_bytes = made.gpu.memory_gb * 1e9
    for variant in made.variants:
        fits = "fits" if variant.total_bytes <= limit_bytes else "too much"
        packs = f"packs of {variant.tokens:,}"
        echo(f"  {variant.name:20} {packs:>16} {variant.total_bytes / 1e9:6.1f} GB  {fits}")
    if made.variants and made.variants[-1].total_bytes <= limit_bytes:
        best = made.variants[-1]
        if best.lines:
            echo("In the recipe:")
            echo("\n".join(COMMAND_INDENT + line for line in best.lines))
        if best.num_gpus > made.num_gpus:
            echo("Start it with the launch file that this prints: higgs-trainer recipes launch/fsdp2")
    else:
        echo("None of these is enough. Train an adapter (section adapter), or take larger GPUs.")


def _describe_packs(tokens: int | None) -> str:
    return "too small" if tokens is None else f"packs of up to {tokens:,} tokens"


def _print_time(made: "Plan") -> None:
    if made.step_seconds is None or made.tokens_per_second is None or made.hour_seconds is None:
        return
    steps = f", {made.steps_per_epoch:,} steps an epoch" if made.steps_per_epoch else ""
    echo(
        f"A step takes about {made.step_seconds:.2f} s{steps}: {made.tokens_per_second:,.0f} tokens a second. "
        f"An hour of speech takes {made.hour_seconds:.0f} s."
    )
