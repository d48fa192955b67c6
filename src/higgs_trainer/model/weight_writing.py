"""Write the weights of a model to safetensors files, one tensor at a time.

`safetensors.torch.save_file` needs all tensors of a file in memory. Here each tensor is read or computed when its turn
comes, so that a model that is larger than the memory can be written. The files are those of `save_file`, byte by byte.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from higgs_trainer.files import write_json
from higgs_trainer.model.weight_files import FLOATS, MODEL_WEIGHTS_INDEX
from higgs_trainer.progress import track
from higgs_trainer.tensors import list_not_finite

FILE_PATTERN = "model{suffix}.safetensors"
METADATA = {"format": "pt"}
"""Without this entry in a file, transformers refuses it."""
NAMES = {dtype: name for name, dtype in FLOATS.items()}
HEADER_ALIGNMENT = 8
PART = 2**24
"""So many numbers are converted at a time."""


def write_weights(
    folder: Path, planned: Mapping[str, Tensor], read: Callable[[str], Tensor], *, max_shard_size: str = "5GB"
) -> list[str]:
    """Write the weights of a model, and an index if they do not fit into one file.

    Args:
        planned: the names of the weights in the order in which they fill the files, and tensors of their shapes and
            dtypes on the meta device.
        read: returns the weight of a name. It is rounded to the planned dtype.
        max_shard_size: the largest size of one file, such as "5GB". Only a weight that is larger exceeds it.

    Returns:
        The names of weights that are not finite in the planned dtype.
    """
    split = split_state_dict_into_shards_factory(
        dict(planned),
        get_storage_size=lambda weight: weight.nbytes,
        filename_pattern=FILE_PATTERN,
        max_shard_size=max_shard_size,
    )
    order = {
        file: sorted(names, key=lambda name: (-planned[name].itemsize, name))
        for file, names in split.filename_to_tensors.items()
    }
    pairs = [(file, name) for file, names in order.items() for name in names]
    not_finite = []
    for file, name in track(pairs, "writing weights", len(pairs)):
        if name == order[file][0]:
            (folder / file).write_bytes(_build_header({one: planned[one] for one in order[file]}))
        if not _append(folder / file, read(name), planned[name]):
            not_finite.append(name)
    if split.is_sharded:
        num_parameters = sum(weight.numel() for weight in planned.values())
        index = {
            "metadata": {"total_parameters": num_parameters, **split.metadata},
            "weight_map": dict(sorted(split.tensor_to_filename.items())),
        }
        write_json(folder / MODEL_WEIGHTS_INDEX, index)
    return not_finite


def _build_header(planned: Mapping[str, Tensor]) -> bytes:
    """Build what is before the numbers in a safetensors file: the length of a JSON object, and the object."""
    header: dict[str, object] = {"__metadata__": METADATA}
    end = 0
    for name, weight in planned.items():
        start, end = end, end + weight.nbytes
        header[name] = {
            "dtype": NAMES[weight.dtype],
            "shape": list(weight.shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % HEADER_ALIGNMENT)
    return len(encoded).to_bytes(8, "little") + encoded


def _append(file: Path, weight: Tensor, planned: Tensor) -> bool:
    """Append a weight to a file in the planned dtype. Return whether it is finite in it."""
    if weight.shape != planned.shape:
        raise ValueError(f"a weight has shape {tuple(weight.shape)}, not {tuple(planned.shape)}")
    is_finite = True
    with file.open("ab") as opened:
        for part in weight.reshape(-1).split(PART):
            rounded = part.to(planned.dtype)
            is_finite &= not list_not_finite({"": rounded})
            opened.write(rounded.view(torch.uint8).numpy())
    return is_finite
