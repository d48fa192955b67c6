"""Read a recipe from a YAML file and the command line, and write one to a file."""

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from higgs_trainer.errors import Problem, RecipeError, shorten, suggest_name
from higgs_trainer.limits import RECIPE_PROBLEMS_SHOWN
from higgs_trainer.recipe.overrides import Override, WrongOverride, find_section, parse_overrides
from higgs_trainer.recipe.problems import FOUND_HERE, Place, describe_wrong_value
from higgs_trainer.recipe.schema import Recipe, WeightedFolder
from higgs_trainer.recipe.split_texts import TEXTS, find_split_texts
from higgs_trainer.recipe.training_fields import SECRETS
from higgs_trainer.recipe.yaml_file import read_document, write_yaml
from higgs_trainer.shared_paths import restore_paths, share_path, write_local_paths

COMMAND_LINE = Path("command line")


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, and apply the overrides of the command line.

    Paths in the file are relative to the folder of the file. Paths in overrides are relative to the working directory.

    Args:
        overrides: arguments such as `--section.field value` or `--section.field=value`. The section may be left out if
            only one section has such a field. Without a value, the field is set to true.

    Raises:
        RecipeError: the file cannot be read, or a field or an override is invalid. The message lists all problems, each
            with file, line, field and remedy.

    Example:
        ```python
        from higgs_trainer import read_recipe

        recipe = read_recipe("recipe.yaml", ["--learning_rate", "1e-4"])
        print(recipe.training.learning_rate)
        ```
    """
    path = Path(path)
    document = read_document(path)
    reader = _Reader(
        path, restore_paths(document.values, path.parent), document.lines, set(document.unquoted)
    )
    for override in parse_overrides(overrides):
        reader.set(override)
    reader.check_texts()
    reader.fill_sections()
    recipe = reader.validate()
    if recipe is None or reader.problems:
        raise RecipeError("\n  ".join(reader.list_problems()))
    return recipe


def write_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write every field, including defaults, so that `read_recipe` returns an equal recipe.

    A `hub_token` is not written, and paths are written as `share_path` names them: the file is shown in the report and
    pushed with the result. ``_local_paths.json`` next to it is private.
    """
    folder = Path(path).parent
    sections = recipe.model_dump()
    local = list(_list_paths(sections))
    for name in ("name_or_path", "codec"):
        if (value := sections["model"][name]) is not None and os.path.isabs(value):
            local.append(Path(value))
            sections["model"][name] = share_path(value, folder)
    for secret in SECRETS:
        sections["training"].pop(secret, None)
    write_local_paths(folder, local)
    write_yaml(_share_paths(sections, folder), Path(path))


def _list_paths(value: Any) -> Iterator[Path]:
    """Yield the paths in nested values."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _list_paths(item)


def _share_paths(value: Any, folder: Path) -> Any:
    if isinstance(value, Path):
        return share_path(value, folder)
    if isinstance(value, dict):
        return {key: _share_paths(item, folder) for key, item in value.items()}
    return [_share_paths(item, folder) for item in value] if isinstance(value, list | tuple) else value


class _Reader:
    """Turn the values of a file and the overrides into a recipe, and collect all problems with their lines."""

    def __init__(
        self, file: Path, values: dict[str, Any], lines: dict[Place, int], unquoted: set[Place]
    ) -> None:
        self.file = file
        self.values = values
        self.lines = lines
        self.unquoted = unquoted
        self.overridden: dict[Place, Any] = {}
        self.problems: list[Problem] = []
        # How many more problems there are.
        self.num_hidden = 0

    def set(self, override: Override | WrongOverride) -> None:
        """Replace a value by that of an override, or add the problem of a wrong override."""
        if isinstance(override, WrongOverride):
            self.problems.append(Problem(COMMAND_LINE, 0, override.what, override.what_to_do))
            return
        if conflict := self._find_conflict(override.place):
            self.problems.append(Problem(COMMAND_LINE, 0, *conflict))
            return
        *sections, name = override.place
        values = self.values
        for section in sections:
            inner = values.get(section)
            if inner is None:
                inner = values[section] = {}
            # The file has another value in place of a section: `validate` reports it.
            if not isinstance(inner, dict):
                return
            values = inner
        values[name] = override.value
        self.overridden[override.place] = override.value
        length = len(override.place)
        self.unquoted = {place for place in self.unquoted if place[:length] != override.place}
        self.unquoted |= {(*override.place, *place) for place in override.unquoted}

    def check_texts(self) -> None:
        """Add the problem of each sentence that YAML has split at its commas."""
        for place, what, what_to_do in find_split_texts(self._get(TEXTS), self.unquoted):
            self.problems.append(
                Problem(*self._find_line(place), f"{'.'.join(map(str, place))}: {what}", what_to_do)
            )

    def list_problems(self) -> Iterator[str]:
        """Yield the problems as lines of a message, and the number of those that are left out."""
        yield from map(str, self.problems[:RECIPE_PROBLEMS_SHOWN])
        if (num_problems := len(self.problems) + self.num_hidden) > RECIPE_PROBLEMS_SHOWN:
            yield f"... and {num_problems - RECIPE_PROBLEMS_SHOWN} more problems"

    def _find_conflict(self, place: Place) -> tuple[str, str] | None:
        """Find an earlier override of the same field, of its section or of a field in it: the problem and the remedy.

        `--adapter null --adapter.r 5` is no conflict: it discards the section of the file.
        """
        dotted = ".".join(map(str, place))
        if place in self.overridden:
            return f"--{dotted} is given twice", "Keep one of them, in one spelling."
        for other, value in self.overridden.items():
            is_inside = value and place[: len(other)] == other
            if is_inside or other[: len(place)] == place:
                what = f"--{dotted} and --{'.'.join(map(str, other))} set the same section"
                return what, "Write all fields in one of them."
        return None

    def fill_sections(self) -> None:
        """Add an empty section where one is missing, so that `validate` reports its required fields one by one."""
        for name, field in Recipe.model_fields.items():
            if self.values.get(name) is None and (field.is_required() or field.default is not None):
                self.values[name] = {}

    def validate(self) -> Recipe | None:
        """Return the recipe. If a field is invalid, add to the problems and return None."""
        try:
            return Recipe.model_validate(self.values, context={"folder": self.file.parent.resolve()})
        except ValidationError as error:
            found = [(self._find_place(item), item) for item in error.errors()]
        groups = [
            (self._find_line(place), place, [item for _, item in group])
            for place, group in groupby(found, key=lambda one: one[0])
        ]
        groups.sort(key=lambda group: (group[0][0] == COMMAND_LINE, group[0][1]))
        # Building a problem takes time: it may search for the name that was meant.
        shown = groups[:RECIPE_PROBLEMS_SHOWN]
        self.num_hidden = len(groups) - len(shown)
        self.problems = [self._build_problem(place, errors) for _, place, errors in shown] + self.problems
        return None

    def _find_place(self, error: ErrorDetails) -> Place:
        """Return the place of an error, without the names that pydantic gives to the options of a union."""
        if error["type"] == FOUND_HERE:
            return tuple(key for key in error["loc"] if key != "extra_arguments")
        place: Place = ()
        value: Any = self.values
        for key in error["loc"]:
            if isinstance(value, dict) and (key in value or error["type"] == "missing"):
                place, value = (*place, key), value.get(str(key))
            elif isinstance(value, list) and isinstance(key, int):
                place, value = (*place, key), value[key]
        return place

    def _build_problem(self, place: Place, errors: list[ErrorDetails]) -> Problem:
        file, line = self._find_line(place)
        dotted = shorten(".".join(map(str, place)))
        if errors[0]["type"] == "extra_forbidden":
            what = "no such field" if len(place) > 1 else "no such section"
            return Problem(file, line, f"{dotted}: {what}", suggest_name(str(place[-1]), _list_known(place)))
        what, what_to_do = describe_wrong_value(self._get(place), errors)
        return Problem(file, line, f"{dotted}: {what}", what_to_do)

    def _find_line(self, place: Place) -> tuple[Path, int]:
        """Return the file and line of a value or, if it is missing, of the nearest section around it."""
        for length in range(len(place), 0, -1):
            if place[:length] in self.overridden:
                return COMMAND_LINE, 0
            if place[:length] in self.lines:
                return self.file, self.lines[place[:length]]
        return self.file, 0

    def _get(self, place: Place) -> Any:
        value: Any = self.values
        for key in place:
            if isinstance(value, dict):
                value = value.get(key)
            elif isinstance(value, list) and isinstance(key, int):
                value = value[key]
        return value


def _list_known(place: Place) -> list[str]:
    """List the known fields of the section that contains an unknown field."""
    model: type[BaseModel] = Recipe
    for key in place[:-1]:
        field = model.model_fields.get(str(key))
        section = None if field is None else find_section(field)
        model = section or (WeightedFolder if isinstance(key, int) or model is not Recipe else model)
    return list(model.model_fields)
