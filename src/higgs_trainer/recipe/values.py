"""Define the types of a recipe's fields: strict types of YAML 1.2, and paths relative to the recipe's file."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationInfo

from higgs_trainer.hub_names import is_hub_name
from higgs_trainer.limits import LARGEST_COUNT, SEEDS
from higgs_trainer.recipe.problems import expect


class Section(BaseModel):
    """Base class of every section. It is immutable, and rejects unknown fields and values of another type."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=False,
        use_attribute_docstrings=True,
    )


class CommandLineText(str):
    """Text from the command line. A path in it is relative to the working directory, not to the recipe's file."""


def mark_texts(value: Any) -> Any:
    """Mark every text in a value as text from the command line."""
    return _convert_texts(value, CommandLineText)


def unmark_texts(value: Any) -> Any:
    """Turn every marked text in a value into ordinary text. For fields of the schema, pydantic does that."""
    return _convert_texts(value, str)


def _convert_texts(value: Any, kind: type[str]) -> Any:
    if isinstance(value, dict):
        return {key: _convert_texts(item, kind) for key, item in value.items()}
    if isinstance(value, list):
        return [_convert_texts(item, kind) for item in value]
    return kind(value) if isinstance(value, str) else value


def _make_whole(value: Any) -> Any:
    """Turn floats without a fraction, such as 1e3 and 8.0, into integers. Keep every other value."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def resolve_text(text: str, folder: Path | None) -> Path:
    """Return the absolute path that a text names.

    Args:
        folder: the folder of the recipe's file, or None if there is no file. Paths from the command line are relative
            to the working directory in any case.
    """
    start = Path.cwd() if folder is None or isinstance(text, CommandLineText) else folder
    return Path(os.path.normpath(start / Path(text).expanduser()))


def _resolve_path(value: Any, info: ValidationInfo) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value.strip():
        raise expect("a path")
    return resolve_text(value, get_folder(info))


def _resolve_name(value: Any, info: ValidationInfo) -> Any:
    """Resolve a value that exists as a path or cannot be a name on the hub."""
    if isinstance(value, Path):
        return str(value)
    folder = get_folder(info)
    if folder is None or not isinstance(value, str) or not value.strip():
        return value
    start = Path.cwd() if isinstance(value, CommandLineText) else folder
    return str(value) if is_hub_name(value, start) else str(resolve_text(value, folder))


def get_folder(info: ValidationInfo) -> Path | None:
    """Return the folder of the recipe's file, or None if the model is built in Python."""
    return None if info.context is None else info.context["folder"]


Text = Annotated[str, Field(pattern=r"\S")]
Whole = Annotated[int, Field(ge=-LARGEST_COUNT, le=LARGEST_COUNT), BeforeValidator(_make_whole)]
Count = Annotated[int, Field(ge=1, le=LARGEST_COUNT), BeforeValidator(_make_whole)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
NotNegativeWhole = Annotated[int, Field(ge=0, le=LARGEST_COUNT), BeforeValidator(_make_whole)]
Seed = Annotated[int, Field(ge=0, le=SEEDS[-1]), BeforeValidator(_make_whole)]
Steps = Annotated[Whole | float, BeforeValidator(_make_whole)]
"""A number of steps or, below 1, a share of all steps."""
NotNegativeSteps = Annotated[NotNegativeWhole | NotNegative, BeforeValidator(_make_whole)]
Names = Annotated[tuple[Text, ...], Strict(False)]
Wholes = Annotated[tuple[Whole, ...], Strict(False)]
Numbers = Annotated[tuple[float, ...], Strict(False)]
FilePath = Annotated[Path, BeforeValidator(_resolve_path, json_schema_input_type=str)]
FolderOrName = Annotated[Text, BeforeValidator(_resolve_name, json_schema_input_type=str)]
"""A folder, or the name of a repository on the Hugging Face hub."""

Scheduler = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
    "greedy",
]
When = Literal["no", "steps", "epoch"]
