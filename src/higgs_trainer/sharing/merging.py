"""Merge an adapter into its base model, and write one model folder that plain transformers opens.

The sum is computed in float32 and rounded once, to the dtype of the new folder. docs/merge.md has what rounding costs.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from higgs_trainer.errors import CheckpointError, list_first
from higgs_trainer.evaluation.evaluation_folder import add_note
from higgs_trainer.files import new_folder
from higgs_trainer.model.adapters import load_adapter, read_base_name
from higgs_trainer.model.loading import load_checkpoint
from higgs_trainer.model.model_files import write_model_checksums
from higgs_trainer.model.model_folder import copy_codec, copy_companions, find_folder, list_inputs
from higgs_trainer.model.weight_files import find_weight_files, read_headers
from higgs_trainer.outputs import check_apart
from higgs_trainer.run_folder import RUN_RECORD
from higgs_trainer.tensors import list_not_finite

NOTE = "Measured with the adapter before it was merged. Merging rounded the weights once, to {dtype}."


@dataclass(frozen=True)
class MergeResult:
    """The dtype of the written weights, and the weights of the base model that transformers' class does not have."""

    dtype: str
    left_out: tuple[str, ...]


def merge_adapter(
    adapter: str | Path,
    output: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    write_card: Callable[[Path], None] = lambda folder: None,
) -> MergeResult:
    """Write the base model with the adapter merged in, its tokenizer and codec, and the record of the run.

    Args:
        adapter: the folder that training wrote.
        output: a folder that does not exist or is empty.
        base: the base model, if it is no longer where the adapter says.
        dtype: of the weights written, such as "bfloat16". None: the dtype of the base model's files.
        max_shard_size: as in transformers' `save_pretrained`.
        write_card: called with the new folder when everything else is in it.

    Raises:
        CheckpointError: a file is missing, adapter and base do not fit, or a merged weight is not finite.
        UserError: ``output`` is not empty, or overlaps ``adapter`` or ``base``.

    Example:
        ```python
        from higgs_trainer import merge_adapter

        merge_adapter("runs/voice", "merged", dtype="bfloat16")
        ```
    """
    adapter = Path(adapter)
    inputs = list_inputs(adapter) + ([] if base is None else list_inputs(base))
    check_apart("--output", output, inputs)
    base_name = str(base) if base is not None else read_base_name(adapter)
    with new_folder(output) as folder:
        base_folder = find_folder(base_name)
        in_files = read_headers(find_weight_files(base_folder)).keys()
        checkpoint = load_checkpoint(base_folder, dtype="float32", keep_text_head=True)
        left_out = sorted(in_files - checkpoint.model.state_dict().keys())
        if dtype is None:
            of_base = AutoConfig.from_pretrained(base_folder).dtype or torch.float32
            dtype = str(of_base).removeprefix("torch.")
        merged = _merge(checkpoint.model, adapter).to(getattr(torch, dtype))
        _check_finite(merged, dtype)
        merged.save_pretrained(folder, max_shard_size=max_shard_size)
        checkpoint.tokenizer.save_pretrained(folder)
        copy_companions(str(base_folder), folder)
        copy_codec(adapter, folder)
        copy_record(adapter, folder)
        add_note(folder, NOTE.format(dtype=dtype))
        write_card(folder)
        write_model_checksums(folder)
    return MergeResult(dtype, tuple(left_out))


def copy_record(source: Path, target: Path) -> None:
    """Copy the files and folders of `RUN_RECORD` that exist."""
    for name in RUN_RECORD:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)
        elif (source / name).is_file():
            shutil.copy(source / name, target / name)


def _merge(base: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """Merge into ``base`` in place, and remove PEFT's layers from it."""
    names = _shapes(base)
    adapted = load_adapter(base, adapter)
    try:
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise CheckpointError(
            f"the adapter {adapter} cannot be merged ({error}). Use it unmerged, with PEFT."
        ) from error
    if changed := names.items() ^ _shapes(merged).items():
        raise CheckpointError(
            f"merging changed names or shapes of weights: {', '.join(sorted(n for n, _ in changed))}"
        )
    return merged


def _shapes(model: nn.Module) -> Mapping[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def _check_finite(model: nn.Module, dtype: str) -> None:
    if bad := list_not_finite(model.state_dict()):
        raise CheckpointError(
            f"merged weights are not finite in {dtype}: {list_first(bad)}. Try --dtype float32. If that fails as "
            "well, the adapter is damaged."
        )
