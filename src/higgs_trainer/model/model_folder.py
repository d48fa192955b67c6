"""Find the folder of a model, an adapter or a codec: a local one, or the hub's copy on this machine.

Nothing is loaded here. Only `find_folder` downloads weights.
"""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from higgs_trainer.errors import CheckpointError, UserError
from higgs_trainer.hub_names import check_hub_name
from higgs_trainer.model.adapters import read_base_name
from higgs_trainer.model.model_files import CODEC_FOLDER, HUB_FILES, SETTINGS
from higgs_trainer.outputs import Input
from higgs_trainer.printable import join_lines
from higgs_trainer.run_folder import ADAPTER_CONFIG
from higgs_trainer.unfinished_runs import restore_run

COMPANIONS = (CODEC_FOLDER, "preprocessor_config.json", "processor_config.json")


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
    return _download(name_or_path, HUB_FILES)


def find_settings_folder(name_or_path: str | Path) -> Path:
    """Return the folder of a model like `find_folder`, but download no weights: only settings, tokenizer and template.

    Raises:
        CheckpointError: there is no such folder, and no such model on the hub.
    """
    restore_run(name_or_path)
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    return _download(name_or_path, SETTINGS)


def _download(name: str | Path, patterns: Sequence[str]) -> Path:
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
    return Path(model) if Path(model).is_dir() else _download(model, [f"{CODEC_FOLDER}/*", ADAPTER_CONFIG])
