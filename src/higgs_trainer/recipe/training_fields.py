"""Pass on, or refuse, the fields of transformers' `TrainingArguments` that `training_section.py` does not list.

The names are read from the source of transformers, without importing it, so that a misspelt name is reported at once.
The types need transformers itself; it is imported only for a recipe that sets such a field.
"""

import ast
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from higgs_trainer.errors import suggest_name
from higgs_trainer.limits import LARGEST_COUNT, RECIPE_PROBLEMS_SHOWN
from higgs_trainer.recipe.problems import Place, describe_wrong_value, raise_problems, show
from higgs_trainer.recipe.values import resolve_text, unmark_texts

LEAVE_OUT = "Leave it out."


@dataclass(frozen=True)
class Refusal:
    """The reason why a recipe cannot set a field, and the remedy.

    ``fixed_value`` is the value that every run has. A recipe may write it, and nothing else.
    """

    why: str
    what_to_do: str = LEAVE_OUT
    fixed_value: Any = ...


DEEPSPEED = "DeepSpeed moves the weights before a gradient that is not finite can be seen: one bad step spoils the run"
SHARDED_LAUNCH = "higgs-trainer recipes launch/fsdp2"
_ORDER = "the order of an epoch is planned from the seed, so that a resumed run continues it exactly"
_SUMS = "the evaluation sums the loss over all supervised cells and keeps no predictions, so it has no effect"
_VERB = "Trainer does not read it: `train` trains and evaluates, `check` predicts as well"
_LIGER = "Liger Kernel does not support these models, and Trainer would train without it silently"
_PACKS = "Set data.tokens_per_pack or training.per_device_train_batch_size."

REFUSED = {
    # The guard and the loss.
    "remove_unused_columns": Refusal(
        "the collator is given whole examples, which have no columns to remove", fixed_value=True
    ),
    "label_names": Refusal("the contract of the model names the labels", fixed_value=None),
    "average_tokens_across_devices": Refusal(
        "the loss is always normalised over all processes", fixed_value=True
    ),
    "use_cache": Refusal(
        "with a cache, attention would cross from one example of a pack to the next", fixed_value=False
    ),
    "use_liger_kernel": Refusal(_LIGER, fixed_value=False),
    "liger_kernel_config": Refusal(_LIGER, fixed_value=None),
    "parallelism_config": Refusal(
        "the loss is normalised for data parallelism only, and the value is an object", fixed_value=None
    ),
    "deepspeed": Refusal(DEEPSPEED, f"Spread the model with FSDP2: {SHARDED_LAUNCH}", None),
    # The order of the data.
    "train_sampling_strategy": Refusal(_ORDER, fixed_value="sequential"),
    "group_by_length": Refusal("packs have no padding", "Set data.packing: true.", False),
    "length_column_name": Refusal(_ORDER, fixed_value="length"),
    "ignore_data_skip": Refusal("a resumed run would train on the same examples again", fixed_value=False),
    "auto_find_batch_size": Refusal("an epoch is planned for one batch size", _PACKS, False),
    "dataloader_drop_last": Refusal("examples would be dropped silently", fixed_value=False),
    "dataloader_in_order": Refusal(
        "batches would arrive in an order that depends on timing", fixed_value=True
    ),
    "dataloader_persistent_workers": Refusal(
        "workers that outlive an epoch would repeat the order of the first one", fixed_value=False
    ),
    # Saving and resuming.
    "enable_jit_checkpoint": Refusal(
        "it would replace the SIGTERM handler of this project, which saves a complete checkpoint",
        fixed_value=False,
    ),
    "overwrite_output_dir": Refusal(
        "checkpoints of an earlier run are never overwritten", "Choose another output_dir.", False
    ),
    "hub_strategy": Refusal(
        "pushes during training contain a pickle of the arguments; the result is pushed at the end",
        fixed_value="end",
    ),
    "hub_always_push": Refusal("nothing is pushed before the end", fixed_value=False),
    # No effect here.
    "batch_eval_metrics": Refusal(_SUMS, fixed_value=False),
    "eval_do_concat_batches": Refusal(_SUMS, fixed_value=True),
    "eval_use_gather_object": Refusal(_SUMS, fixed_value=False),
    "include_for_metrics": Refusal(_SUMS, fixed_value=[]),
    "prediction_loss_only": Refusal(_SUMS, fixed_value=False),
    "do_train": Refusal(_VERB, fixed_value=False),
    "do_eval": Refusal(_VERB, fixed_value=False),
    "do_predict": Refusal(_VERB, fixed_value=False),
    "local_rank": Refusal("the launcher sets the rank of each process", fixed_value=-1),
    # Older names.
    "evaluation_strategy": Refusal("transformers 5 does not have it", "Write eval_strategy."),
    "no_cuda": Refusal("transformers 5 does not have it", "Write use_cpu: true."),
    "warmup_ratio": Refusal("transformers 5 does not have it", "Write the same share as warmup_steps."),
    "use_legacy_prediction_loop": Refusal("transformers 5 does not have it"),
}
"""The fields that a recipe cannot set: they would break a promise of this project, or be ignored silently."""

ACCELERATOR_OPTIONS = ("non_blocking", "gradient_accumulation_kwargs")
"""The options that `accelerator_config` may contain. All others change which process gets which batch."""

WIDER_TYPES: dict[str, Any] = {"fsdp": bool | str | list[str] | None}
"""Types that `TrainingArguments` accepts, but that its annotations do not include."""

FILES = ("fsdp_config",)
"""Fields whose value may be the path of a JSON file."""

SECRETS = ("hub_token",)
"""Fields that are never written: the recipe of a run is saved, shown in the report and pushed with the result."""


@cache
def list_argument_names() -> tuple[str, ...]:
    """Return the names of the fields of `TrainingArguments` in the installed transformers, without importing it."""
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("transformers is not installed. Run: pip install transformers")
    source = Path(spec.origin).with_name("training_args.py").read_text(encoding="utf-8")
    (cls,) = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments"
    ]
    names = [
        node.target.id
        for node in cls.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    return tuple(name for name in names if not name.startswith("_"))


def list_extra_names(own: Collection[str]) -> list[str]:
    """Return the fields of `TrainingArguments` that a recipe may set although its schema does not list them."""
    return [name for name in list_argument_names() if name not in own and name not in REFUSED]


@cache
def build_adapter(name: str) -> TypeAdapter[Any]:
    """Build the validator of a field from its annotation in `TrainingArguments`. Imports transformers."""
    from transformers.training_args import TrainingArguments

    hint = WIDER_TYPES.get(name, get_type_hints(TrainingArguments)[name])
    return TypeAdapter(_as_written(hint), config=ConfigDict(strict=True, allow_inf_nan=False))


def _as_written(hint: Any) -> Any:
    """Replace each enumeration by its values, because a YAML file has values."""
    if isinstance(hint, type) and issubclass(hint, Enum):
        return Literal[tuple(member.value for member in hint)]
    if get_origin(hint) in (Union, UnionType):
        return Union[tuple(map(_as_written, get_args(hint)))]  # noqa: UP007
    if get_origin(hint) is list:
        return list[_as_written(get_args(hint)[0])]  # type: ignore[misc]
    return hint


def check_extra_arguments(
    arguments: Mapping[str, Any], *, own: Collection[str], folder: Path | None
) -> dict[str, Any]:
    """Check the arguments, and return them with paths resolved and without those that every run has anyway.

    Args:
        own: names of the fields that the schema lists.
        folder: the folder of the recipe's file. Paths are relative to it.

    Raises:
        ValidationError: lists all problems of all arguments.
    """
    raise_problems("extra_arguments", _list_problems(arguments, own))
    return {
        name: _resolve_file(name, value, folder) for name, value in arguments.items() if name not in REFUSED
    }


def _list_problems(arguments: Mapping[str, Any], own: Collection[str]) -> Iterator[tuple[Place, str, str]]:
    known = list_extra_names(own) if arguments else []
    num_unknown = 0
    for name, value in arguments.items():
        if name in REFUSED:
            refusal = REFUSED[name]
            if refusal.fixed_value is ... or refusal.fixed_value != value:
                yield (name,), f"is refused: {refusal.why}", refusal.what_to_do
        elif name not in known:
            num_unknown += 1
            is_shown = num_unknown <= RECIPE_PROBLEMS_SHOWN
            yield (name,), "no such field", suggest_name(name, [*own, *known]) if is_shown else LEAVE_OUT
        elif problem := _find_problem(name, value):
            yield ((name,), *problem)


def _find_problem(name: str, value: Any) -> tuple[str, str] | None:
    try:
        build_adapter(name).validate_python(value)
    except ValidationError as error:
        return describe_wrong_value(value, error.errors())
    if (number := _find_wrong_number(value)) is not None:
        return f"has the number {show(number)}", f"Write numbers from {-LARGEST_COUNT} to {LARGEST_COUNT}."
    if name != "accelerator_config" or value is None:
        return None
    if not isinstance(value, dict):
        return f"is {show(value)}", f"Write {' and '.join(ACCELERATOR_OPTIONS)} in the recipe."
    refused = [option for option in value if option not in ACCELERATOR_OPTIONS]
    refused += ["num_steps"] if "num_steps" in (value.get("gradient_accumulation_kwargs") or {}) else []
    if refused:
        return (
            f"sets {', '.join(refused)}, which changes how batches are given to processes",
            f"Keep {' and '.join(ACCELERATOR_OPTIONS)} only, and set training.gradient_accumulation_steps.",
        )
    return None


def _find_wrong_number(value: Any) -> int | float | None:
    """Find a number in a value that is not finite, or a whole number that does not fit into 32 bits."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return next((found for found in map(_find_wrong_number, inner) if found is not None), None)
    if isinstance(value, float):
        return None if math.isfinite(value) else value
    return value if isinstance(value, int) and abs(value) > LARGEST_COUNT else None


def _resolve_file(name: str, value: Any, folder: Path | None) -> Any:
    """Resolve the path of a JSON file like every other path in a recipe."""
    is_path = name in FILES and isinstance(value, str) and not value.startswith("{")
    return str(resolve_text(value, folder)) if is_path else unmark_texts(value)
