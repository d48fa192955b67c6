"""Read YAML 1.2 files with the line of every key, and write them so that reading gives the same values."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from higgs_trainer.errors import Problem, RecipeError
from higgs_trainer.files import write_text
from higgs_trainer.recipe.problems import Place

__all__ = ["Document", "YAMLError", "list_folders", "parse_yaml", "read_document", "read_yaml", "write_yaml"]


@dataclass(frozen=True)
class Document:
    """The values of a YAML file whose top level is a mapping, and the line of each key."""

    values: dict[str, Any]
    lines: dict[Place, int]


def parse_yaml(text: str) -> Any:
    """Parse YAML 1.2 into plain dictionaries, lists, numbers and texts.

    Raises:
        YAMLError: it is not YAML, has a duplicate key, or contains a tag for a Python object.
    """
    return _build_yaml().load(text)


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
    text = _read_text(path)
    try:
        lines = dict(_list_lines(_build_yaml().compose(text)))
        values = parse_yaml(text)
    except DuplicateKeyError as error:
        key = re.search(r"duplicate key (\S+)", str(error.problem))
        what = f"{key[1] if key else 'a key'} is given twice"
        raise RecipeError(
            str(Problem(path, error.problem_mark.line + 1, what, "Keep one of them."))
        ) from error
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        what = " ".join(str(error.problem or error.context).split())
        raise RecipeError(str(Problem(path, line, what, "Correct the YAML there."))) from error
    except YAMLError as error:
        raise RecipeError(str(Problem(path, 0, f"is not YAML ({error})", "Correct it."))) from error
    if not isinstance(values, dict):
        raise RecipeError(
            str(Problem(path, 0, "has no sections", "Write `model:`, `data:` and `training:` in it."))
        )
    return Document(values, lines)


def write_yaml(sections: dict[str, Any], path: Path) -> None:
    """Write sections so that `read_yaml` returns the same values. Paths are written as text, tuples as lists."""
    yaml: Any = _build_yaml()
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.allow_unicode = True
    yaml.width = 4096
    stream = StringIO()
    yaml.dump(_to_plain(sections), stream)
    write_text(path, stream.getvalue())


def list_folders(written: Any) -> list[Path]:
    """Return the folders that `data.train` or `data.eval` of a recipe's file names, in any of the allowed forms."""
    folders = written if isinstance(written, list) else [] if written is None else [written]
    return [Path(str(item.get("path") if isinstance(item, dict) else item)) for item in folders]


def _build_yaml() -> YAML:
    """Build a reader and writer of YAML 1.2 that accepts only plain values and no duplicate keys."""
    return YAML(typ="safe", pure=True)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        problem = Problem(path, 0, f"cannot be read ({error.strerror})", "Give the path of a YAML file.")
        raise RecipeError(str(problem)) from error
    except UnicodeDecodeError as error:
        raise RecipeError(str(Problem(path, 0, f"is not UTF-8 ({error})", "Save it as UTF-8."))) from error


def _list_lines(node: Node | None, place: Place = ()) -> Iterator[tuple[Place, int]]:
    """Yield the place and line of every key and list item."""
    if isinstance(node, MappingNode):
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise MarkedYAMLError(problem="a key is not text", problem_mark=key.start_mark)
        children = [(key.value, key.start_mark.line, value) for key, value in node.value]
    elif isinstance(node, SequenceNode):
        children = [(index, item.start_mark.line, item) for index, item in enumerate(node.value)]
    else:
        return
    for key, line, child in children:
        yield (*place, key), line + 1
        yield from _list_lines(child, (*place, key))


def _to_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
