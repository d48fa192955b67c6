"""YAML 1.2's plain values, read with the line of a mistake and written so that they read back the same."""

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from higgs_trainer.errors import RecipeError
from higgs_trainer.files import write_text


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers and booleans (`2e-6` is a number, `no` a word), and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, (key, (key_node, _)) in enumerate(zip(keys, node.value, strict=True)):
            if key in keys[:position]:
                raise yaml.MarkedYAMLError(
                    problem=f"{key!r} is given twice", problem_mark=key_node.start_mark
                )
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would otherwise take for something else."""


BOOL_TAG, FLOAT_TAG = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != BOOL_TAG]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(BOOL_TAG, re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    FLOAT_TAG, re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def parse_yaml(text: str) -> Any:
    """What a piece of YAML says; `yaml.YAMLError` where it is none."""
    return yaml.load(text, _Loader)


def read_yaml(path: Path) -> dict[str, Any]:
    """The sections of a file; `RecipeError` with file and line where it cannot be read."""
    try:
        values = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise RecipeError(
            f"{path} cannot be read ({error.strerror}); give the path of a YAML file"
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{path}{line}: {error.problem}; mend the YAML there") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not YAML ({error})") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path} holds no sections; it starts with `model:`, `data:`, `training:`")
    return values


def write_yaml(sections: Mapping[str, Any], path: Path) -> None:
    """Write sections so that `read_yaml` reads the same values."""
    text = yaml.dump(to_plain(dict(sections)), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    write_text(path, text)


def to_plain(value: Any) -> Any:
    """Tuples as lists and paths as text, however deep."""
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
