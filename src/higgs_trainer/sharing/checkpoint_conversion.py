"""Convert a checkpoint from Boson's layout to that of transformers, or back, weight by weight.

``layouts.py`` has the tables of names, shapes and fields. This module reads and writes the files. Nothing is written
unless each weight of the source is used exactly once and each weight of the target is filled exactly once. Neither
model class is needed, so this works in an environment with only one of them.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor, cat

from higgs_trainer.errors import CheckpointError, list_first
from higgs_trainer.files import new_folder, write_json, write_text
from higgs_trainer.model.families.layouts import (
    BOSON_MODEL_TYPE,
    COMPUTED,
    NATIVE_MODEL_TYPE,
    SPLIT,
    Sizes,
    build_boson_config,
    build_native_config,
    list_native_weights,
    rename_to_boson,
)
from higgs_trainer.model.model_files import verify_model, write_model_checksums
from higgs_trainer.model.weight_files import (
    COPY_AGAIN,
    FLOATS,
    MODEL_WEIGHTS,
    StoredTensor,
    describe_missing_weights,
    read_headers,
    read_tensor,
)
from higgs_trainer.model.weight_writing import write_weights
from higgs_trainer.outputs import Input, check_apart

CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
COPIED = ("codec", GENERATION_CONFIG, "preprocessor_config.json", "special_tokens_map.json", TOKENIZER)
PROCESSOR = {
    "processor_class": "HiggsAudioV2Processor",
    "audio_tokenizer": {
        "audio_tokenizer_class": "HiggsAudioV2TokenizerModel",
        "audio_tokenizer_name_or_path": "bosonai/higgs-audio-v2-tokenizer",
    },
    "feature_extractor": {
        "feature_extractor_type": "DacFeatureExtractor",
        "feature_size": 1,
        "hop_length": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": 24_000,
    },
}
RELEASED_CODEBOOKS = (8, 1026)
"""Number and size of the codebooks of models whose codec is the audio tokenizer above."""
RELEASED_SAMPLING = {"ras_win_len": 7, "ras_win_max_num_repeat": 2}
"""Repetition-aware sampling, which is on by default in Boson's engine, and in the released files in transformers'
layout."""


@dataclass(frozen=True)
class ConversionResult:
    """The model type of the folder written, and the tensors of the source that are not weights (`COMPUTED`)."""

    model_type: str
    num_weights: int
    left_out: tuple[str, ...]


def convert_checkpoint(
    source: str | Path, output: str | Path, *, max_shard_size: str = "5GB"
) -> ConversionResult:
    """Write a checkpoint in the layout that it does not have. The weights stay bit-identical.

    Args:
        source: a folder in either layout.
        output: a folder that does not exist or is empty.
        max_shard_size: the largest size of one file of weights, such as "5GB".

    Raises:
        CheckpointError: ``source`` is in neither layout; a file, a field or a token is missing; or weights are missing,
            surplus, or have another shape than the configuration says. The message lists all such weights.
        UserError: ``output`` is not empty, or overlaps ``source``.

    Example:
        ```python
        from higgs_trainer import convert_checkpoint

        convert_checkpoint("higgs_audio_v2", "boson")
        ```
    """
    source = Path(source)
    check_apart("--output", output, [Input("the checkpoint", source)])
    config = _read_json(source / CONFIG)
    token_id = _open_tokenizer(source)
    if config.get("model_type") == BOSON_MODEL_TYPE:
        written = native = build_native_config(config, token_id)
    elif config.get("model_type") == NATIVE_MODEL_TYPE:
        native, written = config, build_boson_config(config, token_id)
    else:
        raise CheckpointError(
            f"{source} is a {config.get('model_type')} model, neither {BOSON_MODEL_TYPE} nor {NATIVE_MODEL_TYPE}. "
            "Give the folder of a Higgs Audio v2 model."
        )
    to_native = written is native
    stored = _read_headers(source)
    left_out = sorted(name for name in stored if name.endswith(COMPUTED))
    whole = _join_split({name: tensor for name, tensor in stored.items() if name not in left_out})
    targets = _rename(whole, list_native_weights(native), to_native=to_native, source=source)
    planned = {target: whole[name].outline() for target, name in targets.items()}
    dtypes = sorted({str(weight.dtype).removeprefix("torch.") for weight in planned.values()})
    written["dtype" if to_native else "torch_dtype"] = dtypes[0]
    with new_folder(output) as folder:
        bad = write_weights(
            folder, planned, lambda target: whole[targets[target]].read(), max_shard_size=max_shard_size
        )
        _check_finite(source, [targets[target] for target in bad])
        write_json(folder / CONFIG, written)
        for name in COPIED:
            _copy(source / name, folder / name)
        write_json(
            folder / TOKENIZER_CONFIG, _for_either_version(_read_json(source / TOKENIZER_CONFIG), to_native)
        )
        if to_native:
            _write_native_companions(folder, native)
        write_model_checksums(folder)
    return ConversionResult(written["model_type"], len(planned), tuple(left_out))


def _check_finite(source: Path, bad: list[str]) -> None:
    if bad:
        raise CheckpointError(f"{source} has weights that are not finite: {list_first(bad)}. {COPY_AGAIN}")


@dataclass(frozen=True)
class _Weight:
    """A weight in the files of the source, in one part or in two: name -> where the part is."""

    parts: Mapping[str, StoredTensor]

    def outline(self) -> Tensor:
        return cat([part.outline() for part in self.parts.values()])

    def read(self) -> Tensor:
        tensors = [read_tensor(part.file, name) for name, part in self.parts.items()]
        return tensors[0] if len(tensors) == 1 else cat(tensors)


def _join_split(stored: Mapping[str, StoredTensor]) -> dict[str, _Weight]:
    """Join the matrices that Boson's training splits between two rows."""
    joined = {name: {name: tensor} for name, tensor in stored.items()}
    for name in stored:
        for upper, lower in SPLIT:
            other = name.replace(upper, lower)
            if upper in name and other in stored:
                joined[name.replace(upper, "")] = joined.pop(name) | joined.pop(other)
    return {name: _Weight(parts) for name, parts in joined.items()}


def _rename(
    weights: Mapping[str, _Weight], native_shapes: Mapping[str, Sizes], *, to_native: bool, source: Path
) -> dict[str, str]:
    """Return the names of the weights in the target, and in the source.

    Raises:
        CheckpointError: the two sides do not have the same weights.
    """
    targets = {rename_to_boson(name): name for name in native_shapes}
    if not to_native:
        targets = {native: boson for boson, native in targets.items()}
    shapes = {name: native_shapes[name if not to_native else target] for name, target in targets.items()}
    found = {name: tuple(weight.outline().shape) for name, weight in weights.items()}
    problems = {
        "missing": sorted(targets.keys() - found.keys()),
        "left over": sorted(found.keys() - targets.keys()),
        "of another shape than config.json says": [
            f"{name} {shape}, not {shapes[name]}"
            for name, shape in sorted(found.items())
            if name in shapes and shape != shapes[name]
        ],
    }
    listed = [f"{len(names)} {what}: {', '.join(names)}" for what, names in problems.items() if names]
    if listed:
        raise CheckpointError(f"{source} cannot be converted; weights are\n  " + "\n  ".join(listed))
    return {targets[name]: name for name in weights}


def _read_headers(source: Path) -> dict[str, StoredTensor]:
    """Find all weights. Raise ``CheckpointError`` if files are damaged or missing, or a weight is not a float."""
    verify_model(source)
    files = sorted(source.glob("*.safetensors"))
    if not files:
        raise CheckpointError(describe_missing_weights(source, MODEL_WEIGHTS))
    stored = read_headers(files)
    if other := sorted(
        f"{name} {tensor.dtype}" for name, tensor in stored.items() if tensor.dtype not in FLOATS
    ):
        raise CheckpointError(
            f"{source} has weights that are not floats: {list_first(other)}. Give the checkpoint without quantization."
        )
    return stored


def _open_tokenizer(source: Path) -> Callable[[str], int]:
    """Return a function from a token to its id. It raises ``CheckpointError`` if there is no such token."""
    path = source / TOKENIZER
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing. Copy the tokenizer of the model there: it has the ids of the special tokens."
        )
    tokenizer = Tokenizer.from_file(str(path))

    def token_id(token: str) -> int:
        found = tokenizer.token_to_id(token)
        if found is None:
            raise CheckpointError(f"{path} has no token {token}. Copy the tokenizer of the model there.")
        return int(found)

    return token_id


def _for_either_version(config: dict[str, Any], to_native: bool) -> dict[str, Any]:
    """Rename fields of `tokenizer_config.json`, so that transformers 4.46 and 5 both read it."""
    kept = {
        name: value
        for name, value in config.items()
        if name not in ("backend", "is_local", "local_files_only")
    }
    if to_native:
        # The chat template gets its own file.
        kept.pop("chat_template", None)
    elif isinstance(kept.get("extra_special_tokens"), list):
        kept["additional_special_tokens"] = kept.pop("extra_special_tokens")
    return kept | {"tokenizer_class": "PreTrainedTokenizerFast"}


def _write_native_companions(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the files that only transformers' layout has: chat template, settings of generation, processor."""
    template = resources.files("higgs_trainer.model").joinpath("chat_template.jinja")
    write_text(folder / "chat_template.jinja", template.read_text(encoding="utf-8"))
    generation = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if (folder / GENERATION_CONFIG).is_file():
        generation = _read_json(folder / GENERATION_CONFIG) | generation
    if (config["num_codebooks"], config["codebook_size"]) == RELEASED_CODEBOOKS:
        generation = RELEASED_SAMPLING | generation
        write_json(folder / "processor_config.json", PROCESSOR)
    write_json(folder / GENERATION_CONFIG, generation)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.is_file():
        shutil.copy(source, target)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}). Give the folder of a complete checkpoint."
        ) from error
    return found
