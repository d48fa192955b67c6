"""Load a checkpoint from disk or from the hub: model, tokenizer, codec. Safetensors only, no remote code."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from higgs_trainer.audio.codec import Codec, load_codec
from higgs_trainer.errors import CheckpointError

# This import registers "packed_sdpa".
from higgs_trainer.model import attention as attention
from higgs_trainer.model.families import Family, SequenceFormat, StreamIds, family_of, find_family

ADAPTER_CONFIG = "adapter_config.json"
CODEC_FOLDER = "codec"
COMPANIONS = (CODEC_FOLDER, "preprocessor_config.json", "processor_config.json")
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", f"{CODEC_FOLDER}/*"]


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
        CheckpointError: there is no such model, it is of another kind, weights are missing, or the ids of stream tokens
            do not fit into the codebook.
    """
    name = str(name_or_path)
    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
        family = find_family(str(config.get("model_type")))
        if family.import_model_class is None:
            raise CheckpointError(
                f"{name} is in the layout of {family.name}. Convert it first: higgs-trainer convert"
            )
        model, found = family.import_model_class().from_pretrained(
            name,
            dtype=getattr(torch, dtype),
            attn_implementation=attn_implementation,
            use_safetensors=True,
            use_text_head=use_text_head,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{name} cannot be loaded as a Higgs Audio model ({error}). "
            "Give the folder or the hub name of a Higgs Audio checkpoint."
        ) from error
    # transformers initializes missing weights at random.
    if missing := sorted(found["missing_keys"]):
        raise CheckpointError(
            f"{name} lacks weights of a Higgs Audio model: {', '.join(missing)}. Copy or download it again."
        )
    checkpoint = Checkpoint(name, model, tokenizer)
    begin, end = checkpoint.stream_ids.begin, checkpoint.stream_ids.end
    if model.config.codebook_size <= max(begin, end):
        raise CheckpointError(
            f"{name}: codebook_size {model.config.codebook_size} leaves no room for the stream tokens {begin} and "
            f"{end}. Set it to {max(begin, end) + 1} in config.json"
        )
    return checkpoint


def load_trained(folder: str | Path, *, dtype: str = "float32") -> Checkpoint:
    """Load what training wrote: a model, or an adapter on its base model.

    Raises:
        CheckpointError: the model, or the base model that the adapter names, cannot be loaded (`load_checkpoint`).
    """
    if not (Path(folder) / ADAPTER_CONFIG).is_file():
        return load_checkpoint(folder, dtype=dtype)
    from peft import PeftModel

    base = load_checkpoint(_read_base_name(Path(folder)), dtype=dtype)
    return Checkpoint(str(folder), PeftModel.from_pretrained(base.model, str(folder)), base.tokenizer)


def find_folder(name_or_path: str | Path) -> Path:
    """Return the folder of a model: a local one, or the hub's copy on this machine, downloaded if necessary.

    Raises:
        CheckpointError: there is no such folder, and no such model on the hub.
    """
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    try:
        return Path(snapshot_download(str(name_or_path), allow_patterns=HUB_FILES))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{name_or_path} is neither a folder nor a model on the hub ({error}). Correct the name."
        ) from error


def list_weights(folder: Path) -> frozenset[str]:
    """List the names of all weights in the safetensors files of a folder."""
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    return frozenset(names)


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
        base = _open_without_weights(_read_base_name(folder))
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


def _read_base_name(adapter: Path) -> str:
    return str(json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"])


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
