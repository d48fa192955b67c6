"""Merge an adapter into its base model, and write one model folder that plain transformers opens.

The sum is computed in float32 and rounded once, to the dtype of the new folder. docs/merge.md has what rounding costs.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from higgs_trainer.errors import CheckpointError, list_first
from higgs_trainer.evaluation.evaluation_folder import add_note
from higgs_trainer.files import new_folder
from higgs_trainer.model.adapters import read_base_name
from higgs_trainer.model.loading import open_checkpoint
from higgs_trainer.model.model_files import write_model_checksums
from higgs_trainer.model.model_folder import copy_codec, copy_companions, find_folder, list_inputs
from higgs_trainer.model.weight_writing import write_weights
from higgs_trainer.outputs import check_apart
from higgs_trainer.run_folder import RUN_RECORD
from higgs_trainer.sharing.module_merging import MergedWeights

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
        checkpoint, stored = open_checkpoint(base_folder)
        model = checkpoint.model
        left_out = sorted(stored.keys() - model.state_dict().keys())
        if dtype is None:
            dtype = str(model.config.dtype or torch.float32).removeprefix("torch.")
        merged = MergedWeights(checkpoint, stored, adapter)
        model.to(getattr(torch, dtype))
        # Without weights, this writes the configuration alone.
        model.save_pretrained(folder, state_dict={})
        planned = dict(sorted(model.state_dict().items()))
        bad = write_weights(folder, planned, merged.read, max_shard_size=max_shard_size)
        _check_finite(bad, dtype)
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


def _check_finite(bad: list[str], dtype: str) -> None:
    if bad:
        raise CheckpointError(
            f"merged weights are not finite in {dtype}: {list_first(bad)}. Try --dtype float32. If that fails as "
            "well, the adapter is damaged."
        )
