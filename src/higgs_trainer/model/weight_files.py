"""Find and check the weights of a model or an adapter, before anything is loaded. Only safetensors are read."""

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from higgs_trainer.errors import CheckpointError, DamageError, list_first
from higgs_trainer.input_files import MACHINE_FAULTS

MODEL_WEIGHTS = "model.safetensors"
MODEL_WEIGHTS_INDEX = "model.safetensors.index.json"
SHARDED_WEIGHTS = "pytorch_model_fsdp_0"
"""The folder of a checkpoint that has the shards of its weights, if FSDP wrote it."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
MAX_HEADER_BYTES = 2**24
"""A header of a hundred thousand tensors fits. safetensors itself accepts 100 MB, which take seconds to read."""
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The dtypes that weights may have in a file, by their names there."""
COPY_AGAIN = "Copy or download it again."


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the header of its file describes it. ``dtype`` is a name of safetensors, such as "BF16"."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    def outline(self) -> Tensor:
        """Return a tensor of this shape and dtype, one of `FLOATS`, on the meta device."""
        return torch.empty(self.shape, dtype=FLOATS[self.dtype], device="meta")


def find_weight_files(folder: Path) -> list[Path]:
    """Find the files from which the weights of a model are loaded: one file, or those that an index lists.

    Raises:
        CheckpointError: there are none, or only pickles.
        DamageError: the index is damaged, or a file that it lists is missing.
    """
    if (folder / MODEL_WEIGHTS).is_file():
        return [folder / MODEL_WEIGHTS]
    index = folder / MODEL_WEIGHTS_INDEX
    if not index.is_file():
        raise CheckpointError(describe_missing_weights(folder, MODEL_WEIGHTS))
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        files = sorted(folder / name for name in names)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DamageError(f"{index} is damaged ({error})", COPY_AGAIN) from error
    for file in files:
        if file.parent != folder:
            raise DamageError(f"{index} names {file}, which is outside the folder", COPY_AGAIN)
        if not file.is_file():
            raise DamageError(f"{file} is missing, but {index.name} lists it", COPY_AGAIN)
    return files


def describe_missing_weights(folder: Path, expected: str) -> str:
    """Describe that a folder has no weights, and what to do. Pickles are named, because they are not loaded."""
    if (folder / SHARDED_WEIGHTS).is_dir():
        return (
            f"{folder} is a checkpoint of a run on several GPUs: its weights are in shards, in {SHARDED_WEIGHTS}. "
            "Resume the run, whose result has them in one piece, or run accelerate merge-weights, and copy the JSON "
            "files of the checkpoint next to its output."
        )
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        return (
            f"{folder} has no {expected}, but {list_first(pickles)}, which is not loaded, because a pickle can run "
            "code. Convert it where you trust it: load it with transformers or PEFT and call save_pretrained, which "
            "writes safetensors."
        )
    return f"{folder} has no weights: {expected} is missing. Copy the whole folder."


def read_headers(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Read the names, dtypes and shapes of all tensors in safetensors files, by name.

    Raises:
        DamageError: a file is damaged, or a name is there twice.
    """
    found: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in _read_header(file).items():
            if name in found:
                raise DamageError(
                    f"{file} contains {name}, which {found[name].file.name} also contains",
                    "Remove the file that does not belong to the model.",
                )
            found[name] = tensor
    return found


def _read_header(file: Path) -> dict[str, StoredTensor]:
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"its header would have {length:,} bytes")
            # safetensors checks sizes, offsets and shapes, but keeps the last of two equal names.
            with _open_weights(file):
                header = json.loads(opened.read(length), object_pairs_hook=_refuse_duplicates)
    except (OSError, SafetensorError, ValueError, struct.error, RecursionError) as error:
        if isinstance(error, FileNotFoundError) or getattr(error, "errno", None) in MACHINE_FAULTS:
            raise
        raise DamageError(f"{file} is damaged ({error})", COPY_AGAIN) from error
    return {
        name: StoredTensor(file, tensor["dtype"], tuple(tensor["shape"]))
        for name, tensor in header.items()
        if name != "__metadata__"
    }


def _open_weights(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except FileNotFoundError:
        # safetensors reports any file that it cannot open as missing. The operating system says why.
        with file.open("rb"):
            raise


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it contains {next(name for name in names if names.count(name) > 1)!r} twice")
    return made


def read_tensor(file: Path, name: str) -> Tensor:
    """Read one tensor of a safetensors file.

    The file stays mapped only as long as the tensor exists, so what was read before does not count as memory of the
    process.
    """
    with safe_open(file, framework="pt") as opened:
        tensor: Tensor = opened.get_tensor(name)
    return tensor


def read_tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a safetensors file with their names, one at a time."""
    with safe_open(file, framework="pt") as opened:
        names = list(opened.keys())
    for name in names:
        yield name, read_tensor(file, name)
