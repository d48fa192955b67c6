"""Parse the arguments of the command line that override fields of a recipe."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from higgs_trainer.errors import suggest_name
from higgs_trainer.recipe.problems import Place
from higgs_trainer.recipe.schema import Recipe
from higgs_trainer.recipe.training_fields import REFUSED, build_adapter, list_extra_names
from higgs_trainer.recipe.training_section import TrainingRecipe
from higgs_trainer.recipe.values import CommandLineText, Section, mark_texts
from higgs_trainer.recipe.yaml_file import WrongYAML, parse_with_places


@dataclass(frozen=True)
class Override:
    """A field, and its value on the command line.

    Attributes:
        unquoted: the places in the value of texts without quotes in a list of the form ``[a, b]``.
    """

    place: tuple[str, ...]
    value: Any
    unquoted: frozenset[Place] = frozenset()


@dataclass(frozen=True)
class WrongOverride:
    """An argument that names no field of a recipe: the problem and the remedy."""

    what: str
    what_to_do: str


def parse_overrides(arguments: Sequence[str]) -> Iterator[Override | WrongOverride]:
    """Parse arguments of the forms `--section.field value`, `--section.field=value` and `--section.field` (true).

    The section may be left out if only one section has a field of that name.
    """
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if not argument.startswith("--"):
            yield WrongOverride(f"{argument!r} does not name a field", "Write --field value.")
            continue
        name, equals, given = argument[2:].partition("=")
        value: str | bool = given if equals else True
        if not equals and position < len(arguments) and not arguments[position].startswith("--"):
            value = arguments[position]
            position += 1
        place = _find_place(name.replace("-", "_"))
        yield place if isinstance(place, WrongOverride) else _build_override(place, value)


def find_section(field: FieldInfo) -> type[BaseModel] | None:
    """Return the model of a section such as `adapter: AdapterRecipe | None`, or None if the field is not a section."""
    options = (field.annotation, *get_args(field.annotation))
    return next((cls for cls in options if isinstance(cls, type) and issubclass(cls, BaseModel)), None)


def list_places(model: type[BaseModel] = Recipe, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the place of every section and field of the schema."""
    for name, field in model.model_fields.items():
        if name == "extra_arguments":
            continue
        yield (*prefix, name)
        section = find_section(field)
        if section is not None:
            yield from list_places(section, (*prefix, name))


def _find_place(name: str) -> tuple[str, ...] | WrongOverride:
    """Find the field with this dotted path, or the only field whose dotted path ends in this name."""
    places = {".".join(place): place for place in list_places()}
    if name in places:
        return places[name]
    matches = [dotted for dotted in places if dotted.endswith(f".{name}")]
    if len(matches) == 1:
        return places[matches[0]]
    if matches:
        return WrongOverride(
            f"--{name} may be {' or '.join('--' + dotted for dotted in matches)}", "Write one of them."
        )
    last = name.removeprefix("training.")
    extra = list_extra_names(TrainingRecipe.list_own_fields())
    if last in extra or last in REFUSED:
        return ("training", last)
    known = [dotted for dotted in places if "." in dotted] + [
        f"training.{extra_name}" for extra_name in extra
    ]
    if "." not in name:
        known = [dotted.rpartition(".")[2] for dotted in known]
    return WrongOverride(f"--{name} is not a field of a recipe", suggest_name(name, known))


def _build_override(place: tuple[str, ...], given: str | bool) -> Override:
    """Parse the text as YAML. If the field accepts the text but not the value, keep the text, as in `--run_name 7`."""
    if isinstance(given, bool):
        return Override(place, given)
    text = CommandLineText(given)
    try:
        value, _, unquoted = parse_with_places(given)
    except WrongYAML:
        return Override(place, text)
    if isinstance(value, str) or (not _fits(place, value) and _fits(place, text)):
        return Override(place, text)
    return Override(place, mark_texts(value), unquoted)


def _fits(place: Place, value: Any) -> bool:
    """Return whether a field accepts the value. The value of a whole section is validated later, so it always fits."""
    model: type[BaseModel] = Recipe
    for name in place[:-1]:
        model = find_section(model.model_fields[str(name)]) or model
    name = str(place[-1])
    if name in REFUSED:
        return True
    try:
        if name not in model.model_fields:
            build_adapter(name).validate_python(value)
        elif find_section(model.model_fields[name]) is None:
            annotation = model.model_fields[name].rebuild_annotation()
            TypeAdapter(annotation, config=Section.model_config).validate_python(value)
    except ValidationError:
        return False
    return True
