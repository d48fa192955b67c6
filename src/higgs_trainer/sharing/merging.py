"""An adapter folder and its base -> one model folder, which plain transformers opens.

The sum is made in float32 and rounded once, to the dtype of the new folder. docs/merge.md has what that rounding costs.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from higgs_trainer.errors import CheckpointError
from higgs_trainer.files import new_folder
from higgs_trainer.model.loading import (
    ADAPTER_CONFIG,
    copy_companions,
    find_folder,
    list_weights,
    load_checkpoint,
)
from higgs_trainer.run_folder import RUN_RECORD

ADAPTER_WEIGHTS = "adapter_model.safetensors"
TEXT_HEAD = "text_lm_head.weight"
MODEL_CONFIG = "config.json"


@dataclass(frozen=True)
class Merged:
    """``dtype``: of the weights written. ``left_out``: what the base's files hold and transformers' class does not."""

    dtype: str
    left_out: tuple[str, ...]


def merge_adapter(
    adapter: str | Path,
    output: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    describe: Callable[[Path], None] = lambda folder: None,
) -> Merged:
    """Write the base model with the adapter merged in, its tokenizer, chat template, feature extractor and codec, and
    the run's record.

    Args:
        adapter: the folder that training wrote.
        output: a folder that is not there, or empty.
        base: the base model, where it is no longer where the adapter says.
        dtype: of the weights written, such as "bfloat16"; None: what the base's own files have.
        max_shard_size: as transformers' `save_pretrained` takes it.
        describe: writes what else belongs into the folder, such as a model card, when all the rest is there.

    Raises:
        CheckpointError: a file is missing; adapter and base do not fit; a merged weight is not finite.
        UserError: ``output`` holds something.
    """
    adapter = Path(adapter)
    base_name = str(base) if base is not None else read_base_name(adapter)
    with new_folder(output) as folder:
        base_folder = find_folder(base_name)
        in_files = list_weights(base_folder)
        checkpoint = load_checkpoint(base_folder, use_text_head=TEXT_HEAD in in_files)
        left_out = sorted(in_files - checkpoint.model.state_dict().keys())
        dtype = dtype or str(AutoConfig.from_pretrained(base_folder).dtype or torch.float32).removeprefix(
            "torch."
        )
        merged = _merge(checkpoint.model, adapter).to(getattr(torch, dtype))
        _check_finite(merged, dtype)
        merged.save_pretrained(folder, max_shard_size=max_shard_size)
        checkpoint.tokenizer.save_pretrained(folder)
        copy_companions(str(base_folder), folder)
        copy_record(adapter, folder)
        describe(folder)
    return Merged(dtype, tuple(left_out))


def read_base_name(adapter: Path) -> str:
    """The base model that an adapter folder names.

    Raises:
        CheckpointError: it is no adapter folder, or one without weights or without the name of a base.
    """
    config = adapter / ADAPTER_CONFIG
    if not config.is_file():
        what = (
            "a whole model: nothing is to be merged" if (adapter / MODEL_CONFIG).is_file() else "no adapter"
        )
        raise CheckpointError(
            f"{adapter} is {what}; {ADAPTER_CONFIG} is missing. Give the folder that training wrote"
        )
    if not (adapter / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(
            f"{adapter} holds no {ADAPTER_WEIGHTS}; copy the whole folder (only safetensors are read)"
        )
    name = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not name:
        raise CheckpointError(f"{config} names no base model (base_model_name_or_path); name it with --base")
    return str(name)


def copy_record(source: Path, target: Path) -> None:
    """Copy what training wrote of itself, `RUN_RECORD`."""
    for name in RUN_RECORD:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)
        elif (source / name).is_file():
            shutil.copy(source / name, target / name)


def _merge(base: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """``base`` itself, changed: no layer of PEFT is left in it."""
    names = _shapes(base)
    try:
        adapted = PeftModel.from_pretrained(base, str(adapter))
    except KeyError as error:
        raise CheckpointError(f"{adapter / ADAPTER_WEIGHTS} lacks the weight {error}") from error
    except (
        RuntimeError,
        ValueError,
    ) as error:  # torch's and PEFT's words for shapes and names that do not fit
        raise CheckpointError(
            f"the adapter {adapter} does not fit the base {base.name_or_path}: {error}"
        ) from error
    _check_all_loaded(adapted, adapter)
    try:
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise CheckpointError(f"the adapter {adapter} cannot be merged: {error}") from error
    if changed := names.items() ^ _shapes(merged).items():
        raise CheckpointError(
            f"merging changed names or shapes of weights: {', '.join(sorted(n for n, _ in changed))}"
        )
    return merged


def _shapes(model: nn.Module) -> Mapping[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def _check_all_loaded(adapted: PeftModel, adapter: Path) -> None:
    """PEFT leaves out what it has no place for without a word, and only warns of what is missing."""
    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as file:
        saved = set(file.keys())
    wanted = set(get_peft_model_state_dict(adapted))
    problems = [("lacks", wanted - saved), ("holds what has no place in the model:", saved - wanted)]
    for what, names in problems:
        if names:
            raise CheckpointError(f"{adapter / ADAPTER_WEIGHTS} {what} {', '.join(sorted(names))}")


def _check_finite(model: nn.Module, dtype: str) -> None:
    weights: Mapping[str, Tensor] = model.state_dict()
    if bad := [name for name, weight in weights.items() if not weight.isfinite().all()]:
        raise CheckpointError(
            f"merged weights are not finite in {dtype}: {', '.join(bad)}; if the adapter is sound, give a wider --dtype"
        )
