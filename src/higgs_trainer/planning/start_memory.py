"""Measure the memory that a run takes before its model is loaded."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from higgs_trainer.errors import UserError
from higgs_trainer.peak_memory import read_peak_bytes
from higgs_trainer.recipe.reading import read_recipe, write_recipe
from higgs_trainer.recipe.schema import Recipe
from higgs_trainer.run_folder import RECIPE_FILE
from higgs_trainer.terminal import echo


def measure_start(recipe: Recipe) -> int:
    """Return the memory of a process that does all that `train` does before it loads the model.

    That is Python, the libraries, the tokenizer, the codec and the data. It takes some seconds, because the process is
    started. 0: the system does not say it.
    """
    with TemporaryDirectory() as folder:
        write_recipe(recipe, path := Path(folder) / RECIPE_FILE)
        command = [sys.executable, "-m", "higgs_trainer.planning.start_memory", str(path)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(result.stdout.split()[-1])


def _start(path: str) -> None:
    """Do what `train` does before it loads the model, as far as the files of the recipe are here."""
    import higgs_trainer.run.train  # noqa: F401
    from higgs_trainer.run.preflight import run_preflight

    with suppress(UserError):
        ready = run_preflight(read_recipe(path))
        echo(str(len(ready.plan)), is_prose=False)
    echo(str(read_peak_bytes() or 0), is_prose=False)


if __name__ == "__main__":
    _start(sys.argv[1])
