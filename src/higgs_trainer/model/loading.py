"""A checkpoint on disk or on the hub -> model, tokenizer, codec. Safetensors only, no remote code."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoTokenizer,
    HiggsAudioV2ForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from higgs_trainer.audio.codec import Codec, load_codec
from higgs_trainer.errors import CheckpointError
from higgs_trainer.model import attention as attention  # registers "packed_sdpa"
from higgs_trainer.model.example_encoding import StreamIds

ADAPTER_CONFIG = "adapter_config.json"
CODEC_FOLDER = "codec"
COMPANIONS = (CODEC_FOLDER, "preprocessor_config.json", "processor_config.json")
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", f"{CODEC_FOLDER}/*"]


@dataclass(frozen=True)
class Checkpoint:
    """A model with what belongs to it. ``folder``: where it was loaded from, a path or a hub name."""

    folder: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def stream_ids(self) -> StreamIds:
        """The ids that examples of this checkpoint are made of."""
        config = self.model.config
        return StreamIds(
            audio_token=config.audio_token_id,
            delay_token=config.audio_delay_token_id,
            begin=config.audio_stream_bos_id,
            end=config.audio_stream_eos_id,
            num_codebooks=config.num_codebooks,
        )

    @property
    def num_codes(self) -> int:
        """Real codes in a codebook: those below the stream tokens."""
        return min(self.model.config.audio_stream_bos_id, self.model.config.audio_stream_eos_id)


def load_checkpoint(
    name_or_path: str | Path,
    *,
    dtype: str = "float32",
    attn_implementation: str = "sdpa",
    use_text_head: bool = False,
) -> Checkpoint:
    """Load a native Higgs Audio v2 model and its tokenizer from a folder or the hub.

    Args:
        use_text_head: load the head over text too. Nothing here uses it, and transformers leaves it out without a word;
            what writes the model again would lose it.

    Raises:
        CheckpointError: no model of that name, another kind of model, weights that are missing, or stream tokens that
            collide with codes.
    """
    name = str(name_or_path)
    try:
        config = AutoConfig.from_pretrained(name)
        if config.model_type != HiggsAudioV2ForConditionalGeneration.config_class.model_type:
            raise CheckpointError(f"{name} is a {config.model_type} model, not a higgs_audio_v2 checkpoint")
        model, found = HiggsAudioV2ForConditionalGeneration.from_pretrained(
            name,
            dtype=getattr(torch, dtype),
            attn_implementation=attn_implementation,
            use_safetensors=True,
            use_text_head=use_text_head,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name} cannot be loaded as a Higgs Audio model: {error}") from error
    if missing := sorted(found["missing_keys"]):  # transformers goes on with random ones
        raise CheckpointError(f"{name} lacks weights of a Higgs Audio model: {', '.join(missing)}")
    if config.codebook_size <= max(config.audio_stream_bos_id, config.audio_stream_eos_id):
        raise CheckpointError(
            f"{name}: codebook_size {config.codebook_size} leaves no room for the stream tokens "
            f"{config.audio_stream_bos_id} and {config.audio_stream_eos_id}; set it to "
            f"{max(config.audio_stream_bos_id, config.audio_stream_eos_id) + 1} in config.json"
        )
    return Checkpoint(name, model, tokenizer)


def load_trained(folder: str | Path, *, dtype: str = "float32") -> Checkpoint:
    """Load what training wrote, or a base model: an adapter folder is opened on its base by PEFT.

    Raises:
        CheckpointError: as `load_checkpoint`; or the base that the adapter names cannot be found.
    """
    if not (Path(folder) / ADAPTER_CONFIG).is_file():
        return load_checkpoint(folder, dtype=dtype)
    from peft import PeftModel

    base = load_checkpoint(_read_base_name(Path(folder)), dtype=dtype)
    return Checkpoint(str(folder), PeftModel.from_pretrained(base.model, str(folder)), base.tokenizer)


def open_folder(name_or_path: str | Path) -> Path:
    """The files of a model: its folder, or the hub's copy on this machine, downloaded where it is not here yet."""
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    try:
        return Path(snapshot_download(str(name_or_path), allow_patterns=HUB_FILES))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name_or_path} is no folder, and not found on the hub: {error}") from error


def list_weights(folder: Path) -> frozenset[str]:
    """The names of all weights in a folder's safetensors files."""
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    return frozenset(names)


def copy_companions(source: str, target: Path) -> None:
    """Copy what belongs to a model besides weights and tokenizer, so that the new folder can be used alone: its codec,
    feature extractor and processor. ``source``: a folder, or a hub name."""
    folder = open_folder(source)
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
    """The codec by name or, without one, the one in the model's own folder; checked against the model's sizes.

    Raises:
        CheckpointError: none found, or its codebooks are not the model's.
    """
    codec = load_codec(find_codec(checkpoint.folder) if name is None else name)
    model_shape = (checkpoint.stream_ids.num_codebooks, checkpoint.num_codes)
    if (codec.num_codebooks, codec.codebook_size) != model_shape:
        raise CheckpointError(
            f"codec {codec.name} has {codec.num_codebooks} codebooks of {codec.codebook_size} codes, the model "
            f"{checkpoint.folder} {model_shape[0]} of {model_shape[1]}; name the codec that the model was trained with"
        )
    return codec
