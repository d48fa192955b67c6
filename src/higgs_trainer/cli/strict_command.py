"""Commands that refuse what typer would accept silently: an option given twice, nan, an empty path, a huge integer."""

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from higgs_trainer.limits import GENERATOR_SEEDS


class StrictCommand(TyperCommand):
    """The class of every command: `@app.command(cls=StrictCommand)`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, and check what typer does not.

        Raises:
            typer.BadParameter: an option that takes one value is given twice, a number is not finite or has more than
                64 bits, or a path is empty.
        """
        given, _, in_order = self.make_parser(ctx).parse_args(args=list(args))
        problems = _find_repeated(in_order)
        if not problems:
            rest = super().parse_args(ctx, args)
            problems = [problem for one in self.params for problem in _find_problems(one, ctx.params, given)]
        if problems:
            raise typer.BadParameter(" ".join(problems), ctx=ctx)
        return rest


def _find_repeated(in_order: Iterable[Any]) -> list[str]:
    """Find options that are given twice, in any of their spellings (`-o`, `--output`; `--quality`, `--no-quality`)."""
    return [
        f"{_name(parameter)} is given {times} times. Keep one of them."
        for parameter, times in Counter(in_order).items()
        if times > 1 and parameter.param_type_name == "option" and not _takes_several(parameter)
    ]


def _takes_several(parameter: Any) -> bool:
    return bool(parameter.multiple or parameter.count or parameter.is_eager)


def _find_problems(parameter: Any, values: dict[str, Any], given: dict[str, Any]) -> Iterable[str]:
    """Find what is wrong with the value of a parameter, which typer has converted from ``given``."""
    value = values.get(parameter.name)
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{_name(parameter)} is {value}. Give a finite number."
    if isinstance(value, int) and abs(value) > GENERATOR_SEEDS[-1]:
        yield f"{_name(parameter)} has more than 63 bits. Give a smaller number."
    paths = value if isinstance(value, list | tuple) else [value]
    texts = given.get(parameter.name)
    texts = texts if isinstance(texts, list | tuple) else [texts]
    # typer reads an empty path as the working directory.
    if any(isinstance(path, Path) for path in paths) and any(text == "" for text in texts):
        yield f"{_name(parameter)} is empty. Give a path."


def _name(parameter: Any) -> str:
    """Return the spellings of an option, such as `--output/-o`, or the name of an argument."""
    if parameter.param_type_name != "option":
        return str(parameter.metavar or parameter.name)
    return "/".join([*parameter.opts, *parameter.secondary_opts])
