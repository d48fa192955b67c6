"""Load a checkpoint from disk or from the hub: model, tokenizer, codec. Safetensors only, no remote code."""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from higgs_trainer.audio.codec import Codec, load_codec
from higgs_trainer.errors import CheckpointError, DamageError, UserError, list_first

# This import registers "packed_sdpa".
from higgs_trainer.model import attention as attention
from higgs_trainer.model.adapters import load_adapter, read_base_name
from higgs_trainer.model.config_values import check_ids, check_numbers
from higgs_trainer.model.families import Family, SequenceFormat, StreamIds, family_of, find_family
from higgs_trainer.model.families.layouts import COMPUTED
from higgs_trainer.model.model_files import CODEC_FOLDER, HUB_FILES, list_model_files, verify_model
from higgs_trainer.model.weight_files import COPY_AGAIN, FLOATS, StoredTensor, find_weight_files, read_headers
from higgs_trainer.outputs import Input
from higgs_trainer.printable import join_lines
from higgs_trainer.run_folder import ADAPTER_CONFIG
from higgs_trainer.tensors import list_not_finite
from higgs_trainer.unfinished_runs import restore_run

COMPANIONS = (CODEC_FOLDER, "preprocessor_config.json", "processor_config.json")
NOT_LOADABLE = "Give the folder or the hub name of a Higgs Audio checkpoint."


@dataclass(frozen=True)
class Checkpoint:
    """A model, its tokenizer, and the folder or hub name that they were loaded from."""

    name_or_path: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def family(self) -> Family:
        """The family of the model."""
        return family_of(self.model)

    @property
    def sequence(self) -> SequenceFormat:
        """The sequence format of the model's family."""
        # `load_checkpoint` refuses families without one.
        assert self.family.sequence is not None
        return self.family.sequence

    @property
    def stream_ids(self) -> StreamIds:
        """The ids of the model's placeholders and stream tokens."""
        return self.sequence.read_ids(self.model.config)

    @property
    def num_codes(self) -> int:
        """The number of codes in a codebook, without stream tokens, whose ids are above."""
        ids = self.stream_ids
        return min(ids.begin, ids.end)


def load_checkpoint(
    name_or_path: str | Path,
    *,
    dtype: str = "float32",
    attn_implementation: str = "sdpa",
    use_text_head: bool = False,
) -> Checkpoint:
    """Load a Higgs Audio model and its tokenizer from a folder or from the hub.

    Args:
        use_text_head: also load the head over text. Training and generation do not use it, and transformers silently
            leaves it out; code that saves the model again needs it.

    Raises:
        CheckpointError: there is no such model, it is of another kind, weights are missing, surplus, of another shape
            or not finite, or the ids of stream tokens do not fit into the codebook.
        DamageError: a file is not as it was written.
    """
    name = str(name_or_path)
    folder = find_folder(name)
    if (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"{name} contains an adapter ({ADAPTER_CONFIG}), not a model. Merge it into its base first (higgs-trainer "
            "merge), or give the base."
        )
    verify_model(folder)
    _check_json(folder)
    with _explain_refusal(name):
        values, _ = PreTrainedConfig.get_config_dict(name)
        model_type = str(values.get("model_type"))
    family = find_family(model_type)
    if family.import_model_class is None:
        raise CheckpointError(
            f"{name} is in the layout of {family.name}. Convert it first: higgs-trainer convert"
        )
    headers = read_headers(find_weight_files(folder))
    model_class = family.import_model_class()
    with _explain_refusal(name):
        check_numbers(name, values, headers)
        with torch.device("meta"):
            planned = model_class(model_class.config_class.from_pretrained(name), use_text_head=use_text_head)
    _check_stored(name, planned, headers)
    with _explain_refusal(name):
        model, found = model_class.from_pretrained(
            name,
            dtype=getattr(torch, dtype),
            attn_implementation=attn_implementation,
            use_safetensors=True,
            use_text_head=use_text_head,
            output_loading_info=True,
        )
    _check_loaded(name, model, found)
    checkpoint = Checkpoint(name, model, _load_tokenizer(name))
    check_ids(name, model.config, checkpoint.stream_ids)
    return checkpoint


@contextmanager
def _explain_refusal(name: str) -> Iterator[None]:
    """Raise a CheckpointError where transformers fails on the values in the files of a model.

    It raises exceptions of many kinds for wrong values in config.json and generation_config.json. Only calls of it
    belong into this context, and what reads values of any form, so that no mistake of this package is called one of
    the user's.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise CheckpointError(
            f"{name} cannot be loaded as a Higgs Audio model ({join_lines(error)}). {NOT_LOADABLE}"
        ) from error


def _check_json(folder: Path) -> None:
    """Check that every JSON file of a model can be parsed. Libraries fail on a damaged one in many ways."""
    for name in list_model_files(folder):
        if not name.endswith(".json"):
            continue
        try:
            json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DamageError(f"{folder / name} is damaged ({error})", COPY_AGAIN) from error


def _check_stored(name: str, planned: PreTrainedModel, headers: dict[str, StoredTensor]) -> None:
    """Check the dtypes and shapes of stored weights against the model's, before memory for them is allocated.

    Args:
        planned: the model on the meta device.

    Raises:
        CheckpointError: a weight does not fit; names it.
    """
    expected = planned.state_dict()
    problems = [
        f"{key} {stored.dtype} {list(stored.shape)} instead of {list(expected[key].shape)}"
        for key, stored in headers.items()
        if key in expected and (stored.dtype not in FLOATS or stored.shape != tuple(expected[key].shape))
    ]
    missing = sum(weight.numel() for key, weight in expected.items() if key not in headers)
    if missing > sum(math.prod(stored.shape) for stored in headers.values()):
        raise CheckpointError(
            f"{name} lacks most of the weights that its config.json describes ({missing:,} numbers). {COPY_AGAIN}"
        )
    if problems:
        raise CheckpointError(
            f"{name} has weights of another type or shape than its config.json says: {list_first(problems)}. "
            + COPY_AGAIN
        )


def _check_loaded(name: str, model: PreTrainedModel, found: dict[str, Any]) -> None:
    """Raise CheckpointError if weights were missing or surplus in the files, or are not finite."""
    # transformers initializes missing weights at random, and ignores surplus ones.
    if missing := sorted(found["missing_keys"]):
        raise CheckpointError(
            f"{name} lacks weights of a Higgs Audio model: {list_first(missing)}. {COPY_AGAIN}"
        )
    if surplus := sorted(key for key in found["unexpected_keys"] if not key.endswith(COMPUTED)):
        raise CheckpointError(
            f"{name} has weights that a Higgs Audio model does not have: {list_first(surplus)}. {COPY_AGAIN}"
        )
    if bad := list_not_finite(model.state_dict()):
        raise CheckpointError(
            f"{name} has weights that are not finite in {str(model.dtype).removeprefix('torch.')}: "
            f"{list_first(bad)}. {COPY_AGAIN}"
        )


def _load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(name)
    except MemoryError:
        raise
    # tokenizers raises a plain Exception for every mistake in its file.
    except Exception as error:
        raise CheckpointError(
            f"the tokenizer of {name} cannot be loaded ({join_lines(error)}). {COPY_AGAIN}"
        ) from error


def load_trained(folder: str | Path, *, dtype: str = "float32") -> Checkpoint:
    """Load what training wrote: a model, or an adapter on its base model.

    Raises:
        CheckpointError: the model, or the base model that the adapter names, cannot be loaded (`load_checkpoint`), or
            the adapter does not fit (`load_adapter`).
    """
    restore_run(folder)
    if not (Path(folder) / ADAPTER_CONFIG).is_file():
        return load_checkpoint(folder, dtype=dtype)
    base = load_checkpoint(read_base_name(Path(folder)), dtype=dtype)
    return Checkpoint(str(folder), load_adapter(base.model, Path(folder)), base.tokenizer)


def list_inputs(model: str | Path, codec: str | Path | None = None) -> list[Input]:
    """List the folders that a command with this model reads: the model, the base model of an adapter, and the codec.

    Nothing is loaded. Names on the hub are listed too.
    """
    restore_run(model)
    inputs = [Input("the model", model)]
    # Without an adapter, or with a damaged one, which loading reports, there is no base model to list.
    with suppress(UserError, OSError, ValueError):
        base = read_base_name(Path(model), needs_weights=False)
        inputs.append(Input("the base model of the adapter", base))
    return inputs + ([] if codec is None else [Input("the codec", codec)])


def find_folder(name_or_path: str | Path) -> Path:
    """Return the folder of a model: a local one, or the hub's copy on this machine, downloaded if necessary.

    Raises:
        CheckpointError: there is no such folder, and no such model on the hub.
    """
    restore_run(name_or_path)
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    try:
        return Path(snapshot_download(str(name_or_path), allow_patterns=HUB_FILES))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{name_or_path} is neither a folder nor a model on the hub ({error}). Correct the name."
        ) from error


def copy_companions(source: str, target: Path) -> None:
    """Copy codec, feature extractor and processor of a model to ``target``, so that it can be used without ``source``.

    Args:
        source: a folder, or a hub name.
    """
    folder = find_folder(source)
    for name in COMPANIONS:
        if (folder / name).is_dir():
            shutil.copytree(folder / name, target / name, dirs_exist_ok=True)
        elif (folder / name).is_file():
            shutil.copy(folder / name, target / name)


def find_codec(model: str | Path) -> Path:
    """Find the codec folder of a model without loading the model.

    Args:
        model: the folder of a model or an adapter, or a name on the hub. An adapter without a codec folder uses that
            of its base model.

    Raises:
        CheckpointError: neither the model nor its base model has a codec folder.
    """
    folder = _open_without_weights(model)
    if (folder / CODEC_FOLDER).is_dir():
        return folder / CODEC_FOLDER
    if (folder / ADAPTER_CONFIG).is_file():
        base = _open_without_weights(read_base_name(folder, needs_weights=False))
        if (base / CODEC_FOLDER).is_dir():
            return base / CODEC_FOLDER
    raise CheckpointError(
        f"{model} has no {CODEC_FOLDER} folder; name its codec with --codec or, in a recipe, with model.codec"
    )


def _open_without_weights(model: str | Path) -> Path:
    """Return the folder of a model, with nothing downloaded but its codec and its adapter's configuration."""
    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(str(model), allow_patterns=[f"{CODEC_FOLDER}/*", ADAPTER_CONFIG]))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the codec of {model} cannot be found ({error}); name the codec with --codec or, in a recipe, with "
            "model.codec"
        ) from error


def load_codec_of(checkpoint: Checkpoint, name: str | None = None) -> Codec:
    """Load the codec ``name`` or, by default, the one in the folder of the model.

    Raises:
        CheckpointError: there is no codec, or it does not have the codebooks of the model.
    """
    codec = load_codec(find_codec(checkpoint.name_or_path) if name is None else name)
    model_shape = (checkpoint.stream_ids.num_codebooks, checkpoint.num_codes)
    if (codec.num_codebooks, codec.codebook_size) != model_shape:
        raise CheckpointError(
            f"codec {codec.name} has {codec.num_codebooks} codebooks of {codec.codebook_size} codes, but the model "
            f"{checkpoint.name_or_path} has {model_shape[0]} codebooks of {model_shape[1]} codes. "
            "Name the codec that the model was trained with."
        )
    return codec
