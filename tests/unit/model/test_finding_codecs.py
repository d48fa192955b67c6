"""The codec of a model is found where the model, its recipe, its processor or its base model names it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from higgs_trainer.errors import CheckpointError
from higgs_trainer.model.model_folder import RELEASED_CODEC, RELEASED_SHAPE, copy_codec, find_codec
from higgs_trainer.shared_paths import share_path, write_local_paths

HUB_NAME = "bosonai/higgs-audio-v2-tokenizer"
FOLDER_OF_REPOSITORY = "k2-fsa/OmniVoice/audio_tokenizer"


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_json(tmp_path / "base" / "config.json", {"model_type": "higgs_audio_v2"})
    return tmp_path / "base"


@pytest.fixture
def run(tmp_path: Path, base: Path) -> Path:
    """The folder of an adapter on the base model."""
    write_json(tmp_path / "runs/voice/adapter_config.json", {"base_model_name_or_path": str(base)})
    return tmp_path / "runs/voice"


@pytest.fixture
def codec(tmp_path: Path) -> Path:
    """A folder outside the models."""
    write_json(tmp_path / "elsewhere" / "codec_config.json", {})
    return tmp_path / "elsewhere"


def name_in_recipe(folder: Path, codec: str) -> None:
    (folder / "recipe.yaml").write_text(f"model:\n  name_or_path: base\n  codec: {codec}\n")


def name_in_processor(folder: Path, codec: str) -> None:
    write_json(folder / "processor_config.json", {"audio_tokenizer": {"audio_tokenizer_name_or_path": codec}})


def test_a_codec_folder_comes_first(run: Path, base: Path, codec: Path) -> None:
    name_in_recipe(run, str(codec))
    shutil.copytree(codec, base / "codec")
    shutil.copytree(codec, run / "codec")
    assert find_codec(run) == str(run / "codec")
    assert find_codec(base) == str(base / "codec")


@pytest.mark.parametrize("name", [HUB_NAME, FOLDER_OF_REPOSITORY])
def test_the_recipe_of_a_run_names_a_codec_on_the_hub(run: Path, name: str) -> None:
    name_in_recipe(run, name)
    assert find_codec(run) == name


def test_the_recipe_of_a_run_names_a_folder_relative_to_the_run(run: Path, codec: Path) -> None:
    name_in_recipe(run, share_path(codec, run))
    assert find_codec(run) == str(codec)


def test_a_run_that_was_moved_finds_its_codec(run: Path, codec: Path, tmp_path: Path) -> None:
    name_in_recipe(run, share_path(codec, run))
    write_local_paths(run, [codec])
    moved = run.rename(tmp_path / "moved")
    assert find_codec(moved) == str(codec)


def test_the_processor_of_the_base_model_names_the_codec(run: Path, base: Path) -> None:
    name_in_processor(base, HUB_NAME)
    assert find_codec(run) == HUB_NAME


def test_the_run_comes_before_its_base_model(run: Path, base: Path, codec: Path) -> None:
    name_in_processor(base, HUB_NAME)
    name_in_recipe(run, str(codec.relative_to(codec.parent)))
    assert find_codec(run) == HUB_NAME
    name_in_recipe(run, share_path(codec, run))
    assert find_codec(run) == str(codec)


def test_the_recipe_of_a_model_comes_before_its_processor(base: Path) -> None:
    name_in_processor(base, HUB_NAME)
    name_in_recipe(base, FOLDER_OF_REPOSITORY)
    assert find_codec(base) == FOLDER_OF_REPOSITORY


def test_a_model_of_the_released_shape_has_the_released_codec(run: Path, base: Path) -> None:
    write_json(base / "config.json", RELEASED_SHAPE)
    assert find_codec(run) == RELEASED_CODEC


@pytest.mark.parametrize("named", ["../gone", "null", "[1]"])
def test_a_codec_that_is_named_nowhere_or_gone_is_an_error(run: Path, named: str) -> None:
    name_in_recipe(run, named)
    with pytest.raises(CheckpointError, match="name its codec with --codec"):
        find_codec(run)


def test_a_folder_outside_the_model_is_copied_and_a_hub_name_is_not(
    run: Path, codec: Path, tmp_path: Path
) -> None:
    name_in_recipe(run, HUB_NAME)
    copy_codec(run, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    name_in_recipe(run, share_path(codec, run))
    copy_codec(run, tmp_path / "merged")
    assert (tmp_path / "merged/codec/codec_config.json").is_file()
