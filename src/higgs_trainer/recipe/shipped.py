"""List and copy the recipes that come with the package."""

import os
from pathlib import Path

from higgs_trainer.errors import RecipeError, suggest_name
from higgs_trainer.files import write_text

PACKAGE = Path(__file__).resolve().parents[1]
PLACES = (PACKAGE / "recipes", PACKAGE.parents[1] / "recipes")
"""The folder of recipes in an installed package, and in a clone of the repository."""


def find_recipes() -> dict[str, Path]:
    """Return the shipped recipes by name: the path in the folder of recipes, without ".yaml".

    Raises:
        RecipeError: the folder of recipes is missing.
    """
    folder = next((place for place in PLACES if place.is_dir()), None)
    if folder is None:
        raise RecipeError(f"{PLACES[0]} is missing. Install higgs-trainer again.")
    paths = sorted(folder.rglob("*.yaml"), key=lambda path: (path.parent != folder, path))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def read_title(path: Path) -> str:
    """Read the first line of a recipe, a comment that says what the recipe is for."""
    first, *_ = path.read_text(encoding="utf-8").splitlines()
    return first.removeprefix("#").strip()


def copy_recipe(name: str, output: Path | None = None) -> Path:
    """Copy a shipped recipe and return the copy's path.

    Args:
        output: the new file. None: the file name of the recipe, in the working directory.

    Raises:
        RecipeError: there is no such recipe, the file exists already, or its folder does not exist.
        SaveError: the file cannot be written.
    """
    recipes = find_recipes()
    name = name.removesuffix(".yaml")
    if name not in recipes:
        raise RecipeError(f"{name} is not a shipped recipe. {suggest_name(name, list(recipes))}")
    output = Path(recipes[name].name) if output is None else output
    if os.path.lexists(output):
        raise RecipeError(f"{output} exists already. Choose another file with -o FILE.")
    if not output.parent.is_dir():
        raise RecipeError(f"{output} cannot be written (no such folder). Choose another file with -o FILE.")
    write_text(output, recipes[name].read_text(encoding="utf-8"), remedy="choose another file with -o FILE")
    return output
