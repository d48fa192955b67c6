"""Load a checkpoint from disk or from the hub: model, tokenizer, codec. Safetensors only, no remote code."""

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import is_fsdp_enabled
from transformers.utils import GENERATION_CONFIG_NAME

from higgs_trainer.audio.codec import Codec, load_codec
from higgs_trainer.audio.lazy_codec import open_codec
from higgs_trainer.distributed import is_first_of_machine
from higgs_trainer.errors import CheckpointError, DamageError, UserError, list_first
from higgs_trainer.limits import MOST_WEIGHTS
from higgs_trainer.model.adapters import load_adapter, read_base_name
from higgs_trainer.model.attention import check_attention
from higgs_trainer.model.config_values import check_ids, check_numbers
from higgs_trainer.model.families import Family, SequenceFormat, StreamIds, family_of, find_family
from higgs_trainer.model.families.layouts import COMPUTED
from higgs_trainer.model.loaded_dtype import AUTO, choose_dtype
from higgs_trainer.model.model_files import SETTINGS, list_model_files, verify_model
from higgs_trainer.model.model_folder import find_codec, find_folder
from higgs_trainer.model.quantization import build_quantization
from higgs_trainer.model.weight_files import COPY_AGAIN, FLOATS, StoredTensor, find_weight_files, read_headers
from higgs_trainer.printable import join_lines
from higgs_trainer.run_folder import ADAPTER_CONFIG
from higgs_trainer.tensors import list_not_finite
from higgs_trainer.unfinished_runs import restore_run

NOT_LOADABLE = "Give the folder or the hub name of a Higgs Audio checkpoint."
TEXT_HEAD = "text_lm_head.weight"
"""The weight of the head over text in the files of a model."""


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
    dtype: str = AUTO,
    attn_implementation: str = "sdpa",
    quantization: str | None = None,
    keep_text_head: bool = False,
) -> Checkpoint:
    """Load a Higgs Audio model and its tokenizer from a folder or from the hub.

    If FSDP sends the weights from the first process of a machine to the others (`fsdp_cpu_ram_efficient_loading`), only
    that one reads them. In the others, the parameters are on the meta device.

    Args:
        dtype: "float32", "bfloat16" or "float16"; "auto" as in `choose_dtype`.
        quantization: "nf4" loads linear layers in 4 bits (`build_quantization`); they cannot be trained or saved then.
        keep_text_head: also load the head over text, if the files have one. Training and generation do not use it, and
            transformers silently leaves it out; code that saves the model again needs it.

    Raises:
        CheckpointError: there is no such model, it is of another kind, weights are missing, surplus, of another shape
            or not finite, or the ids of stream tokens do not fit into the codebook.
        DamageError: a file is not as it was written.
    """
    name = str(name_or_path)
    folder = find_folder(name)
    _check_is_model(name, folder)
    reads_weights = not is_fsdp_enabled() or is_first_of_machine()
    if reads_weights:
        verify_model(folder)
    use_text_head = keep_text_head and TEXT_HEAD in read_headers(find_weight_files(folder))
    planned = _plan_model(name, folder, use_text_head=use_text_head)
    weights_dtype = getattr(torch, choose_dtype(name, dtype))
    options = {
        "dtype": weights_dtype,
        "quantization_config": build_quantization(quantization, weights_dtype),
        "attn_implementation": attn_implementation,
        "use_text_head": use_text_head,
        "output_loading_info": True,
    }
    with _explain_refusal(name):
        if reads_weights:
            model, found = type(planned).from_pretrained(name, use_safetensors=True, **options)
        else:
            model, _ = type(planned).from_pretrained(None, config=planned.config, state_dict={}, **options)
            _load_generation_config(model, folder)
    if reads_weights:
        _check_loaded(name, model, found)
    checkpoint = Checkpoint(name, model, load_tokenizer(name))
    check_ids(name, model.config, checkpoint.stream_ids)
    return checkpoint


def load_outline(
    name_or_path: str | Path, *, attn_implementation: str = "sdpa", compares_weights: bool = True
) -> Checkpoint:
    """Load everything of a model but its weights: its configuration, its tokenizer, and its modules on the meta device.

    With it, whatever needs no weights can be checked in a second, before gigabytes are downloaded and read.

    Args:
        compares_weights: compare the configuration with the weights of a folder, which must be there then.

    Raises:
        CheckpointError: as `load_checkpoint`, except for values of weights.
        RecipeError: the attention function is unknown, or its package is not installed.
    """
    name = str(name_or_path)
    folder = find_folder(name, SETTINGS)
    _check_is_model(name, folder)
    # Of a model on the hub, the weights may not be here yet.
    planned = _plan_model(name, folder, has_weights=compares_weights and Path(name).is_dir())
    check_attention(planned, attn_implementation)
    outline = Checkpoint(name, planned, load_tokenizer(name))
    check_ids(name, planned.config, outline.stream_ids)
    return outline


def open_checkpoint(name_or_path: str | Path) -> tuple[Checkpoint, dict[str, StoredTensor]]:
    """Load everything of a model but its weights (`load_outline`), and find each weight in its files.

    The head over text is part of the model if the files have one.

    Raises:
        CheckpointError: as `load_checkpoint`, except for values of weights.
        DamageError: a file is not as it was written.
    """
    name = str(name_or_path)
    folder = find_folder(name)
    _check_is_model(name, folder)
    verify_model(folder)
    stored = read_headers(find_weight_files(folder))
    planned = _plan_model(name, folder, use_text_head=TEXT_HEAD in stored)
    planned.name_or_path = name
    with _explain_refusal(name):
        _load_generation_config(planned, folder)
    expected = planned.state_dict().keys()
    _check_names(name, missing=expected - stored.keys(), surplus=stored.keys() - expected)
    outline = Checkpoint(name, planned, load_tokenizer(name))
    check_ids(name, planned.config, outline.stream_ids)
    return outline, stored


def _check_is_model(name: str, folder: Path) -> None:
    if (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"{name} contains an adapter ({ADAPTER_CONFIG}), not a model. Merge it into its base first (higgs-trainer "
            "merge), or give the base."
        )


def _plan_model(
    name: str, folder: Path, *, use_text_head: bool = False, has_weights: bool = True
) -> PreTrainedModel:
    """Build a model on the meta device, from the configuration in its folder.

    Args:
        has_weights: compare the model with the headers of the stored weights.
    """
    _check_json(folder)
    with _explain_refusal(name):
        values, _ = PreTrainedConfig.get_config_dict(folder)
        model_type = str(values.get("model_type"))
    family = find_family(model_type)
    if family.import_model_class is None:
        raise CheckpointError(
            f"{name} is in the layout of {family.name}. Convert it first: higgs-trainer convert"
        )
    headers = read_headers(find_weight_files(folder)) if has_weights else None
    model_class = family.import_model_class()
    with _explain_refusal(name):
        check_numbers(name, values, range(MOST_WEIGHTS) if headers is None else headers)
        with torch.device("meta"):
            planned = model_class(
                model_class.config_class.from_pretrained(folder), use_text_head=use_text_head
            )
    if headers is not None:
        _check_stored(name, planned, headers)
    return planned


def _load_generation_config(model: PreTrainedModel, folder: Path) -> None:
    if (folder / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)


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
    _check_names(name, missing=found["missing_keys"], surplus=found["unexpected_keys"])
    if bad := list_not_finite(model.state_dict()):
        raise CheckpointError(
            f"{name} has weights that are not finite in {str(model.dtype).removeprefix('torch.')}: "
            f"{list_first(bad)}. {COPY_AGAIN}"
        )


def _check_names(name: str, *, missing: Iterable[str], surplus: Iterable[str]) -> None:
    if lacked := sorted(missing):
        raise CheckpointError(
            f"{name} lacks weights of a Higgs Audio model: {list_first(lacked)}. {COPY_AGAIN}"
        )
    if left_over := sorted(key for key in surplus if not key.endswith(COMPUTED)):
        raise CheckpointError(
            f"{name} has weights that a Higgs Audio model does not have: {list_first(left_over)}. {COPY_AGAIN}"
        )


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    try:
        return AutoTokenizer.from_pretrained(name)
    except MemoryError:
        raise
    # tokenizers raises a plain Exception for every mistake in its file.
    except Exception as error:
        raise CheckpointError(
            f"the tokenizer of {name} cannot be loaded ({join_lines(error)}). {COPY_AGAIN}"
        ) from error


def load_trained(folder: str | Path, *, dtype: str = AUTO) -> Checkpoint:
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


def load_codec_of(
    checkpoint: Checkpoint, codec: Codec | str | Path | None = None, *, is_lazy: bool = False
) -> Codec:
    """Load a codec, by default the one that `find_codec` finds for the model, and check that it fits the model.

    Args:
        codec: a name for `load_codec`, or a codec that is loaded already.
        is_lazy: read large weights only when they are needed (`open_codec`). Every process must call this.

    Raises:
        CheckpointError: there is no codec, or it does not have the codebooks of the model.
    """
    if codec is None:
        codec = find_codec(checkpoint.name_or_path)
    if isinstance(codec, str | Path):
        codec = open_codec(codec) if is_lazy else load_codec(codec)
    model_shape = (checkpoint.stream_ids.num_codebooks, checkpoint.num_codes)
    if (codec.num_codebooks, codec.codebook_size) != model_shape:
        raise CheckpointError(
            f"codec {codec.name} has {codec.num_codebooks} codebooks of {codec.codebook_size} codes, but the model "
            f"{checkpoint.name_or_path} has {model_shape[0]} codebooks of {model_shape[1]} codes. "
            "Name the codec that the model was trained with."
        )
    return codec
