"""List and read the recipes that come with the package."""

from pathlib import Path

from higgs_trainer.errors import RecipeError, suggest_name

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


def read_shipped(name: str) -> str:
    """Return the text of a shipped recipe.

    Raises:
        RecipeError: there is no such recipe.
    """
    recipes = find_recipes()
    name = name.removesuffix(".yaml")
    if name not in recipes:
        raise RecipeError(f"{name} is not a shipped recipe. {suggest_name(name, list(recipes))}")
    return recipes[name].read_text(encoding="utf-8")
