"""Find the folder of a model, an adapter or a codec: a local one, or the hub's copy on this machine.

Nothing is loaded here. Only `find_folder` downloads weights.
"""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from higgs_trainer.errors import CheckpointError, UserError
from higgs_trainer.files import read_json_object
from higgs_trainer.hub_names import check_hub_name, is_hub_name, is_hub_subfolder
from higgs_trainer.model.adapters import read_base_name
from higgs_trainer.model.model_files import CODEC_FOLDER, HUB_FILES, SETTINGS
from higgs_trainer.outputs import Input
from higgs_trainer.printable import join_lines
from higgs_trainer.recipe.yaml_file import read_yaml
from higgs_trainer.run_folder import ADAPTER_CONFIG, MODEL_CONFIG, RECIPE_FILE
from higgs_trainer.shared_paths import find_shared
from higgs_trainer.unfinished_runs import restore_run

PROCESSOR_CONFIG = "processor_config.json"
COMPANIONS = (CODEC_FOLDER, "preprocessor_config.json", PROCESSOR_CONFIG)
CODEC_AND_SETTINGS = (f"{CODEC_FOLDER}/*", *SETTINGS, RECIPE_FILE)
"""Patterns of the files that name the codec of a model, and of the codec in its folder."""
RELEASED_CODEC = "bosonai/higgs-audio-v2-tokenizer"
RELEASED_SHAPE = {
    "model_type": "higgs_audio_v2",
    "hidden_size": 3072,
    "num_codebooks": 8,
    "codebook_size": 1026,
}
"""Fields of the configuration of the released model."""


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


def find_folder(name_or_path: str | Path, patterns: Sequence[str] = HUB_FILES) -> Path:
    """Return the folder of a model: a local one, or the hub's copy on this machine, downloaded if necessary.

    Args:
        patterns: the files to download. With `SETTINGS`, weights are not downloaded.

    Raises:
        CheckpointError: there is no such folder, and no such model on the hub.
    """
    restore_run(name_or_path)
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    return download_files(name_or_path, patterns)


def download_files(name: str | Path, patterns: Sequence[str]) -> Path:
    """Download the files of a model on the hub that match one of the patterns.

    Raises:
        CheckpointError: the name is no hub name, there is no such model, or the hub cannot be reached.
    """
    check_hub_name(name)
    try:
        return Path(snapshot_download(str(name), allow_patterns=list(patterns)))
    except GatedRepoError as error:
        raise CheckpointError(
            f"the model {name} on the hub is gated. Accept its terms on its page there, and log in: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{name} is neither a folder here nor a model on the hub that you can read. Correct the name or, if the "
            "model is private, log in: hf auth login"
        ) from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{name} is not a folder here, and the Hugging Face hub cannot be reached to look for it there. Connect to "
            "the network, or give the folder of a downloaded model."
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{name} cannot be downloaded from the hub ({join_lines(error)}). Correct the name, or try again."
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


def copy_codec(model: str | Path, target: Path) -> None:
    """Copy the codec of a model to ``target`` if it is a folder outside the model, which ``target`` could not find."""
    if (target / CODEC_FOLDER).is_dir():
        return
    # Without a codec, the command that needs it says so.
    with suppress(CheckpointError):
        if Path(codec := find_codec(model)).is_dir():
            shutil.copytree(codec, target / CODEC_FOLDER)


def find_codec(model: str | Path) -> str:
    """Find the codec of a model without loading the model: a folder, or a name on the hub.

    Sources, in this order: a codec folder in the model, the recipe that trained it, its processor's configuration; then
    the same of the base model, for an adapter; then, for a model of the released shape, the released codec.

    Args:
        model: the folder of a model or an adapter, or a name on the hub.

    Raises:
        CheckpointError: none of these names a codec.
    """
    folders = [find_folder(model, CODEC_AND_SETTINGS)]
    if (folders[0] / ADAPTER_CONFIG).is_file():
        folders.append(find_folder(read_base_name(folders[0], needs_weights=False), CODEC_AND_SETTINGS))
    for folder in folders:
        if (folder / CODEC_FOLDER).is_dir():
            return str(folder / CODEC_FOLDER)
        if named := _read_trained_codec(folder) or _read_processor_codec(folder):
            return named
    if _has_released_shape(folders[-1]):
        return RELEASED_CODEC
    raise CheckpointError(
        f"{model} has no {CODEC_FOLDER} folder; name its codec with --codec or, in a recipe, with model.codec"
    )


def _read_trained_codec(folder: Path) -> str | None:
    """Return the codec of the recipe in a run folder, if it names one that is still there."""
    if not (folder / RECIPE_FILE).is_file():
        return None
    named = (read_yaml(folder / RECIPE_FILE).get("model") or {}).get("codec")
    if not isinstance(named, str):
        return None
    found = find_shared(named, folder)
    return str(found) if found else named if is_hub_name(named) or is_hub_subfolder(named) else None


def _read_processor_codec(folder: Path) -> str | None:
    """Return the codec that the processor of a model names, if it is a folder here or a name on the hub."""
    tokenizer = _read_settings(folder / PROCESSOR_CONFIG).get("audio_tokenizer")
    named = tokenizer.get("audio_tokenizer_name_or_path") if isinstance(tokenizer, dict) else None
    return named if isinstance(named, str) and (Path(named).is_dir() or is_hub_name(named)) else None


def _has_released_shape(folder: Path) -> bool:
    """Return whether a model has the codebooks of the released codec, and so probably uses it."""
    config = _read_settings(folder / MODEL_CONFIG)
    return all(config.get(name) == value for name, value in RELEASED_SHAPE.items())


def _read_settings(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}
