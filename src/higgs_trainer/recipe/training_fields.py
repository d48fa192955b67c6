"""Fields of transformers' `TrainingArguments` that `schema.TrainingRecipe` does not list: passed on, or refused.

The names are read from the source of transformers, without importing it, so that a misspelt name is reported at once.
The types need transformers itself; it is imported only for a recipe that sets such a field.
"""

import ast
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
from higgs_trainer.recipe.problems import Place, describe_wrong_value, raise_problems, show
from higgs_trainer.recipe.values import resolve_text, unmark_texts

LEAVE_OUT = "Leave it out."


@dataclass(frozen=True)
class Refusal:
    """Why a recipe cannot set a field. The one value that a run has anyway is accepted."""

    why: str
    what_to_do: str = LEAVE_OUT
    value_of_a_run: Any = ...


_ORDER = "the order of an epoch is planned from the seed, so that a resumed run continues it exactly"
_SUMS = "the evaluation sums the loss over all supervised cells and keeps no predictions, so it has no effect"
_VERB = "Trainer does not read it: `train` trains and evaluates, `check` predicts as well"
_LIGER = "Liger Kernel does not support these models, and Trainer would train without it silently"
_PACKS = "Set data.tokens_per_pack or training.per_device_train_batch_size."

REFUSED = {
    # The guard and the loss.
    "remove_unused_columns": Refusal(
        "the collator is given whole examples, which have no columns to remove", value_of_a_run=True
    ),
    "label_names": Refusal("the contract of the model names the labels", value_of_a_run=None),
    "average_tokens_across_devices": Refusal(
        "the loss is always normalised over all processes", value_of_a_run=True
    ),
    "use_cache": Refusal(
        "with a cache, attention would cross from one example of a pack to the next", value_of_a_run=False
    ),
    "use_liger_kernel": Refusal(_LIGER, value_of_a_run=False),
    "liger_kernel_config": Refusal(_LIGER, value_of_a_run=None),
    "parallelism_config": Refusal(
        "the loss is normalised for data parallelism only, and the value is an object", value_of_a_run=None
    ),
    # The order of the data.
    "train_sampling_strategy": Refusal(_ORDER, value_of_a_run="sequential"),
    "group_by_length": Refusal("packs have no padding", "Set data.packing: true.", False),
    "length_column_name": Refusal(_ORDER, value_of_a_run="length"),
    "ignore_data_skip": Refusal("a resumed run would train on the same examples again", value_of_a_run=False),
    "auto_find_batch_size": Refusal("an epoch is planned for one batch size", _PACKS, False),
    "dataloader_drop_last": Refusal("examples would be dropped silently", value_of_a_run=False),
    "dataloader_in_order": Refusal(
        "batches would arrive in an order that depends on timing", value_of_a_run=True
    ),
    "dataloader_persistent_workers": Refusal(
        "workers that outlive an epoch would repeat the order of the first one", value_of_a_run=False
    ),
    # Saving and resuming.
    "enable_jit_checkpoint": Refusal(
        "it would replace the handler of SIGTERM that already saves a complete checkpoint",
        value_of_a_run=False,
    ),
    "overwrite_output_dir": Refusal(
        "checkpoints of an earlier run are never overwritten", "Choose another output_dir.", False
    ),
    "hub_strategy": Refusal(
        "pushes during training contain a pickle of the arguments; the result is pushed at the end",
        value_of_a_run="end",
    ),
    "hub_always_push": Refusal("nothing is pushed before the end", value_of_a_run=False),
    # No effect here.
    "batch_eval_metrics": Refusal(_SUMS, value_of_a_run=False),
    "eval_do_concat_batches": Refusal(_SUMS, value_of_a_run=True),
    "eval_use_gather_object": Refusal(_SUMS, value_of_a_run=False),
    "include_for_metrics": Refusal(_SUMS, value_of_a_run=[]),
    "prediction_loss_only": Refusal(_SUMS, value_of_a_run=False),
    "do_train": Refusal(_VERB, value_of_a_run=False),
    "do_eval": Refusal(_VERB, value_of_a_run=False),
    "do_predict": Refusal(_VERB, value_of_a_run=False),
    "local_rank": Refusal("the launcher sets the rank of each process", value_of_a_run=-1),
    # Older names.
    "evaluation_strategy": Refusal("transformers 5 does not have it", "Write eval_strategy."),
    "no_cuda": Refusal("transformers 5 does not have it", "Write use_cpu: true."),
    "warmup_ratio": Refusal("transformers 5 does not have it", "Write the same share as warmup_steps."),
    "use_legacy_prediction_loop": Refusal("transformers 5 does not have it"),
}
"""What a recipe cannot set, and why: it would break a promise of this project, or be ignored silently."""

ACCELERATOR_OPTIONS = ("non_blocking", "gradient_accumulation_kwargs")
"""What `accelerator_config` may hold. The rest changes which process is given which batch."""

WIDER_TYPES: dict[str, Any] = {"fsdp": bool | str | list[str] | None}
"""Types that `TrainingArguments` accepts although its annotation does not say so."""

FILES = ("deepspeed", "fsdp_config")
"""Fields that may be the path of a JSON file."""

SECRETS = ("hub_token",)
"""Fields that are never written: the recipe of a run is saved, shown in the report and pushed with the result."""


@cache
def list_argument_names() -> tuple[str, ...]:
    """Return the names of the fields of `TrainingArguments` in the installed transformers, without importing it."""
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("transformers is not installed; pip install transformers")
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
    """Build the check of a field's type from the annotation in `TrainingArguments`. Imports transformers."""
    from transformers.training_args import TrainingArguments

    hint = WIDER_TYPES.get(name, get_type_hints(TrainingArguments)[name])
    return TypeAdapter(_as_written(hint), config=ConfigDict(strict=True, allow_inf_nan=False))


def _as_written(hint: Any) -> Any:
    """Replace each enumeration by its values, as YAML has them."""
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
    """Return the arguments with paths resolved, or raise everything that is wrong with them together.

    A refused argument is left out if it has the value that a run has anyway.

    Args:
        own: names of the fields that the schema lists.
        folder: the one of the recipe's file, to which paths are relative.
    """
    raise_problems("extra_arguments", _list_problems(arguments, own))
    return {
        name: _resolve_file(name, value, folder) for name, value in arguments.items() if name not in REFUSED
    }


def _list_problems(arguments: Mapping[str, Any], own: Collection[str]) -> Iterator[tuple[Place, str, str]]:
    known = list_extra_names(own) if arguments else []
    for name, value in arguments.items():
        if name in REFUSED:
            refusal = REFUSED[name]
            if refusal.value_of_a_run is ... or refusal.value_of_a_run != value:
                yield (name,), f"is refused: {refusal.why}", refusal.what_to_do
        elif name not in known:
            yield (name,), "no such field", suggest_name(name, [*own, *known])
        elif problem := _find_problem(name, value):
            yield ((name,), *problem)


def _find_problem(name: str, value: Any) -> tuple[str, str] | None:
    try:
        build_adapter(name).validate_python(value)
    except ValidationError as error:
        return describe_wrong_value(value, error.errors())
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


def _resolve_file(name: str, value: Any, folder: Path | None) -> Any:
    """Resolve the path of a JSON file as every other path of a recipe."""
    is_path = name in FILES and isinstance(value, str) and not value.startswith("{")
    return str(resolve_text(value, folder)) if is_path else unmark_texts(value)
