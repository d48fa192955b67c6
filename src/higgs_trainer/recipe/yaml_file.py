"""Read YAML files with the line of every key, and write them so that reading gives the same values.

ruamel.yaml reads the syntax; this module builds the values, by the core schema of YAML 1.2 and nothing else. So `010`
is ten, and `1_000`, `1:30`, `yes`, `0b1` and `2026-01-01` are texts. Whatever could be read in two ways is an error: a
key that is given twice, a tag, a merge key (`<<`, which YAML 1.2 does not have). Aliases are replaced by what they
stand for, up to `limits.RECIPE_VALUES` values in all.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
    StreamStartEvent,
)

from higgs_trainer.errors import Problem, RecipeError, shorten
from higgs_trainer.files import write_text
from higgs_trainer.input_files import read_text_file
from higgs_trainer.limits import LONGEST_NUMBER, RECIPE_BYTES, RECIPE_DEPTH, RECIPE_VALUES
from higgs_trainer.printable import join_lines
from higgs_trainer.recipe.problems import Place

__all__ = ["Document", "WrongYAML", "parse_yaml", "read_document", "read_yaml", "write_yaml"]

CONSTANTS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
DECIMAL = re.compile(r"[-+]?[0-9]+", re.ASCII)
OCTAL_OR_HEXADECIMAL = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+", re.ASCII)
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", re.ASCII)
TEXT_TAG = "tag:yaml.org,2002:str"


class WrongYAML(Exception):
    """YAML that cannot be read, or that could be read in two ways."""

    def __init__(self, line: int, what: str, what_to_do: str) -> None:
        super().__init__(f"line {line}: {what}. {what_to_do}")
        self.line, self.what, self.what_to_do = line, what, what_to_do


@dataclass(frozen=True)
class Document:
    """The values of a YAML file whose top level is a mapping, and the line of each key.

    Attributes:
        unquoted: the places of texts without quotes in a list of the form ``[a, b]``, where each comma starts an item.
    """

    values: dict[str, Any]
    lines: dict[Place, int]
    unquoted: frozenset[Place]


def parse_yaml(text: str) -> Any:
    """Parse YAML into dictionaries, lists, numbers, texts, true, false and null.

    Raises:
        WrongYAML: it is not YAML, or it exceeds a limit.
    """
    return parse_with_places(text)[0]


def parse_with_places(text: str) -> tuple[Any, dict[Place, int], frozenset[Place]]:
    """Parse YAML. Return the value, the line of each key and item, and the unquoted texts in lists (`Document`).

    Raises:
        WrongYAML: it is not YAML, or it exceeds a limit.
    """
    builder = _Builder(YAML(typ="safe", pure=True).parse(text))
    try:
        return builder.build_document(), dict(builder.entries), frozenset(builder.unquoted)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        what = shorten(join_lines(error.problem or error.context))
        raise WrongYAML(line, what, "Correct the YAML there.") from error
    # ruamel.yaml raises ValueError for a directive with a wrong version.
    except (YAMLError, ValueError) as error:
        raise WrongYAML(0, f"is not YAML ({shorten(join_lines(error))})", "Correct it.") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the sections of a file, without the lines.

    Raises:
        RecipeError: the file cannot be read; the message has its name and the line.
    """
    return read_document(path).values


def read_document(path: Path) -> Document:
    """Read a file whose top level is a mapping.

    Raises:
        RecipeError: the file cannot be read; the message has its name and the line.
    """
    remedy = "Give the path of a YAML file."
    text = read_text_file(path, at_most=RECIPE_BYTES, what_to_do=remedy, error_class=RecipeError)
    try:
        values, lines, unquoted = parse_with_places(text)
    except WrongYAML as error:
        raise RecipeError(str(Problem(path, error.line, error.what, error.what_to_do))) from error
    if not isinstance(values, dict):
        raise RecipeError(
            str(Problem(path, 0, "has no sections", "Write `model:`, `data:` and `training:` in it."))
        )
    return Document(values, lines, unquoted)


def write_yaml(sections: dict[str, Any], path: Path) -> None:
    """Write sections so that `read_yaml` returns the same values. Paths are written as text, tuples as lists."""
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.allow_unicode = True
    yaml.width = 4096
    stream = StringIO()
    yaml.dump(_to_plain(sections), stream)
    write_text(path, stream.getvalue())


@dataclass(frozen=True)
class _Anchored:
    """A value with an anchor: its place, and the part of `_Builder.entries` that lists the keys and items in it."""

    value: Any
    place: Place
    first: int
    last: int


@dataclass
class _Builder:
    """Build a value from the events of the parser, and list the place and the line of every key and item."""

    events: Iterator[Event]
    entries: list[tuple[Place, int]] = field(default_factory=list)
    anchors: dict[str, _Anchored] = field(default_factory=dict)
    unquoted: list[Place] = field(default_factory=list)

    def build_document(self) -> Any:
        value, num_documents = None, 0
        for event in self.events:
            if isinstance(event, DocumentStartEvent):
                num_documents += 1
            elif not isinstance(event, StreamStartEvent | StreamEndEvent | DocumentEndEvent):
                value = self._build(event, ())
            if num_documents > 1:
                raise WrongYAML(_line_of(event), "a second document begins", "Write one document in a file.")
        return value

    def _build(self, event: Event, place: Place) -> Any:
        """Build the value that begins with ``event``. Its place is where it is in the document."""
        if len(place) > RECIPE_DEPTH:
            what = f"values are nested more than {RECIPE_DEPTH} levels deep"
            raise WrongYAML(_line_of(event), what, "Remove levels: no field has so many.")
        if isinstance(event, AliasEvent):
            return self._copy(event, place)
        tag = getattr(event, "tag", None)
        if tag not in (None, "!", TEXT_TAG) or (tag and not isinstance(event, ScalarEvent)):
            raise WrongYAML(_line_of(event), f"the tag {shorten(str(tag))} is refused", "Leave it out.")
        first = len(self.entries)
        if isinstance(event, ScalarEvent):
            value = _read_scalar(event)
        elif isinstance(event, SequenceStartEvent):
            value = self._build_list(place, is_flow=bool(event.flow_style))
        else:
            value = self._build_mapping(place)
        if (anchor := getattr(event, "anchor", None)) is not None:
            self.anchors[anchor] = _Anchored(value, place, first, len(self.entries))
        return value

    def _build_list(self, place: Place, *, is_flow: bool) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            inner = (*place, len(items))
            self._add(inner, _line_of(event))
            if is_flow and isinstance(event, ScalarEvent) and event.style is None:
                self.unquoted.append(inner)
            items.append(self._build(event, inner))
        return items

    def _build_mapping(self, place: Place) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            key, line = _read_key(event), _line_of(event)
            if key in values:
                raise WrongYAML(line, f'"{shorten(key)}" is given twice', "Keep one of them.")
            self._add((*place, key), line)
            values[key] = self._build(next(self.events), (*place, key))
        return values

    def _copy(self, event: AliasEvent, place: Place) -> Any:
        """Return a copy of what an alias stands for, and list its keys and items again."""
        if (anchored := self.anchors.get(event.anchor)) is None:
            what = f"the alias *{shorten(event.anchor)} stands for nothing before it, or for a value that contains it"
            raise WrongYAML(_line_of(event), what, "Write the value itself.")
        for inner, line in self.entries[anchored.first : anchored.last]:
            self._add((*place, *inner[len(anchored.place) :]), line)
        return _copy_value(anchored.value)

    def _add(self, place: Place, line: int) -> None:
        if len(place) > RECIPE_DEPTH + 1 or len(self.entries) >= RECIPE_VALUES:
            what = f"there are more than {RECIPE_VALUES:,} values, or more than {RECIPE_DEPTH} levels of them"
            raise WrongYAML(line, what, "Remove values and aliases: a recipe has a few dozen fields.")
        self.entries.append((place, line))


def _line_of(event: Event) -> int:
    return int(event.start_mark.line) + 1


def _read_key(event: Event) -> str:
    if not isinstance(event, ScalarEvent) or event.tag not in (None, "!", TEXT_TAG):
        raise WrongYAML(_line_of(event), "a key is not text", "Write a name before the colon.")
    if event.value == "<<" and event.style is None:
        what = "the merge key << is not part of YAML 1.2, and would hide which value counts"
        raise WrongYAML(_line_of(event), what, "Write the keys here.")
    return str(event.value)


def _read_scalar(event: ScalarEvent) -> Any:
    """Read a scalar by the core schema of YAML 1.2."""
    text = str(event.value)
    if event.style is not None or event.tag is not None:
        return text
    if text in CONSTANTS:
        return CONSTANTS[text]
    is_whole = DECIMAL.fullmatch(text) or OCTAL_OR_HEXADECIMAL.fullmatch(text)
    if not is_whole and not FLOAT.fullmatch(text):
        return float(text.replace(".", "")) if NOT_FINITE.fullmatch(text) else text
    if len(text) > LONGEST_NUMBER:
        what = f"a number has {len(text)} characters, more than {LONGEST_NUMBER}"
        raise WrongYAML(_line_of(event), what, "Write a shorter number, or put a text in quotes.")
    if OCTAL_OR_HEXADECIMAL.fullmatch(text):
        return int(text, 0)
    return int(text) if is_whole else float(text)


def _copy_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy_value(item) for key, item in value.items()}
    return [_copy_value(item) for item in value] if isinstance(value, list) else value


def _to_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
