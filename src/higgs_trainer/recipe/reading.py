"""A YAML file and a command line -> dataclasses with typed fields.

An unknown key, a wrong type or a missing value is an error that says where; all of a file's are raised together.
Paths in a file are relative to its folder, those on the command line to the working directory.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from higgs_trainer.errors import RecipeError, suggest_name
from higgs_trainer.recipe.yaml_file import parse_yaml, read_yaml

FOLDER_OR_NAME = "a folder or a name on the hub"
FolderOrName = Annotated[str, FOLDER_OR_NAME]


def read_sections(
    cls: type, path: Path, overrides: Sequence[str] = (), *, minima: Mapping[str, float]
) -> Any:
    """A `cls`, whose fields are sections or values, from a YAML file with `overrides` set over it.

    Args:
        minima: the least that a number may be, by its dotted path.

    Raises:
        RecipeError: the file cannot be read, or anything in it or in `overrides` is wrong: all of it together.
    """
    values = read_yaml(path)
    reader = _Reader(path, minima)
    for dotted, override in _parse_overrides(cls, overrides):
        _set_value(values, dotted, override)
    found = reader.read_section(cls, values, ())
    if reader.problems:
        raise RecipeError("\n".join(reader.problems))
    return found


# The command line


@dataclass(frozen=True)
class _Override:
    """What an override gave, its text or True for none: its type is known only where it is read."""

    given: str | bool


def _parse_overrides(cls: type, arguments: Sequence[str]) -> Iterator[tuple[str, _Override]]:
    """`--name value`, `--name=value`, `--name` -> (dotted path, what was given)."""
    paths = list(_list_paths(cls))
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if not argument.startswith("--"):
            raise RecipeError(f"{argument!r} is no override; write --field value")
        name, equals, given = argument[2:].partition("=")
        if equals:
            yield _find_path(name, paths), _Override(given)
        elif position < len(arguments) and not arguments[position].startswith("--"):
            yield _find_path(name, paths), _Override(arguments[position])
            position += 1
        else:
            yield _find_path(name, paths), _Override(True)


def _list_paths(cls: type, prefix: str = "") -> Iterator[str]:
    """Every section and field by its dotted path."""
    for name, hint in get_type_hints(cls, include_extras=True).items():
        section = _find_section(hint)
        yield prefix + name
        if section is not None:
            yield from _list_paths(section, f"{prefix}{name}.")


def _find_path(name: str, paths: Sequence[str]) -> str:
    """The dotted path of a field that is named by it, or by its last part where that is unambiguous."""
    name = name.replace("-", "_")
    if name in paths:
        return name
    matches = [path for path in paths if path.endswith(f".{name}")]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise RecipeError(
            f"--{name} could be {' or '.join('--' + path for path in matches)}; write one of them"
        )
    known = [path for path in paths if "." in path]
    if "." not in name:
        known = [path.rpartition(".")[2] for path in known]
    raise RecipeError(f"--{name} is no field of a recipe. {suggest_name(name, known)}")


def _set_value(values: dict[str, Any], dotted: str, override: _Override) -> None:
    *sections, name = dotted.split(".")
    for section in sections:
        inner = values.get(section)
        if inner is None or isinstance(inner, _Override):
            inner = values[section] = {}
        if not isinstance(inner, dict):  # no section; the reader will say so
            return
        values = inner
    values[name] = override


# Values -> dataclasses


class _WrongType(Exception):
    """Carries, in words, what was expected."""


class _Reader:
    """Turns what YAML gave into dataclasses and collects what is wrong on the way."""

    def __init__(self, file: Path, minima: Mapping[str, float]) -> None:
        self.file = file
        self.minima = minima
        self.folder = file.parent.resolve()
        self.problems: list[str] = []

    def add(self, path: tuple[str, ...], problem: str) -> None:
        place = ": ".join(filter(None, (str(self.file), ".".join(path))))
        self.problems.append(f"{place}: {problem}")

    def read(self, hint: Any, value: Any, path: tuple[str, ...]) -> Any:
        """A field of any type, sections included; None and a problem where it does not fit."""
        folder, section = self.folder, _find_section(hint)
        if isinstance(value, _Override):
            folder, value = Path.cwd(), _parse_override(value.given, None if section else hint)
        if section is not None:
            return None if value is None and hint is not section else self.read_section(section, value, path)
        try:
            converted = _convert(hint, value, folder)
        except _WrongType as error:
            self.add(path, f"is {value!r}; expected {error}")
            return None
        least = self.minima.get(".".join(path))
        if least is not None and converted is not None and converted < least:
            self.add(path, f"is {value!r}; it is at least {least}")
        return converted

    def read_section(self, cls: type, values: Any, path: tuple[str, ...]) -> Any:
        """`cls` from a mapping. Where `problems` grew, what comes back is not to be used."""
        values = {} if values is None else values
        if not isinstance(values, dict):
            self.add(path, f"is {values!r}; expected a section with fields")
            return None
        hints = get_type_hints(cls, include_extras=True)
        for key in values:
            if key not in hints:
                what = "field" if path else "section"
                self.add((*path, str(key)), f"no such {what}. {suggest_name(str(key), list(hints))}")
        found: dict[str, Any] = {}
        for item in fields(cls):
            is_required = item.default is MISSING and item.default_factory is MISSING
            if item.name in values or (is_required and is_dataclass(hints[item.name])):
                found[item.name] = self.read(hints[item.name], values.get(item.name), (*path, item.name))
            elif is_required:
                self.add((*path, item.name), "is missing; it has no default")
                found[item.name] = None
        return cls(**found)


def _find_section(hint: Any) -> type | None:
    """The dataclass in a type such as `AdapterRecipe | None`."""
    options = (option for option in (hint, *get_args(hint)) if isinstance(option, type))
    return next((option for option in options if is_dataclass(option)), None)


def _parse_override(given: str | bool, hint: Any) -> Any:
    """YAML where that fits the type, else the words as they were typed: `--run_name 7`, `--run_name "a #1"`."""
    if isinstance(given, bool):
        return given
    try:
        value = parse_yaml(given)
        if hint is not None:
            _convert(hint, value, Path())
    except (yaml.YAMLError, _WrongType):
        return given
    return given if isinstance(value, str) else value


def _convert(hint: Any, value: Any, folder: Path) -> Any:
    """`value` as the type `hint`. Raises _WrongType with what was expected."""
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _convert_to_one_of(options, value, folder)
    if origin is Literal:
        if isinstance(value, str) and value in options:
            return value
        raise _WrongType(" or ".join(map(repr, options)))
    if origin is tuple:
        if not isinstance(value, list):
            raise _WrongType("a list")
        return tuple(_convert(options[0], item, folder) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise _WrongType("names with values")
        return {str(key): _convert(options[1], item, folder) for key, item in value.items()}
    if origin is Annotated:
        return _find_folder(_convert(str, value, folder), folder)
    return CONVERTERS[hint](value, folder)


def _convert_to_one_of(options: Sequence[Any], value: Any, folder: Path) -> Any:
    """The first type that fits: so `int | float` keeps whole numbers whole."""
    expected = []
    for option in options:
        try:
            return _convert(option, value, folder)
        except _WrongType as error:
            expected.append(str(error))
    raise _WrongType(" or ".join(expected))


def _convert_none(value: Any, _: Path) -> None:
    if value is not None:
        raise _WrongType("null")


def _convert_bool(value: Any, _: Path) -> bool:
    if not isinstance(value, bool):
        raise _WrongType("true or false")
    return value


def _convert_int(value: Any, _: Path) -> int:
    if isinstance(value, bool) or not (
        isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    ):
        raise _WrongType("a whole number")
    return int(value)


def _convert_float(value: Any, _: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _WrongType("a number")
    return float(value)


def _convert_str(value: Any, _: Path) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _WrongType("text (put it in quotes)")
    return value


def _convert_path(value: Any, folder: Path) -> Path:
    if not isinstance(value, str) or not value.strip():
        raise _WrongType("a path")
    return Path(os.path.normpath(folder / Path(value).expanduser()))


def _find_folder(value: str, folder: Path) -> str:
    """A folder's path in full; what is no folder and does not look like one is a name on the hub."""
    path = _convert_path(value, folder)
    return str(path) if value.startswith((".", "/", "~")) or path.exists() else value


CONVERTERS: dict[Any, Callable[[Any, Path], Any]] = {
    NoneType: _convert_none,
    bool: _convert_bool,
    int: _convert_int,
    float: _convert_float,
    str: _convert_str,
    Path: _convert_path,
}
