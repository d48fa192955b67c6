"""A path with a mistake in it is reported as that, and never looked up on the hub."""

from pathlib import Path

import pytest

from higgs_trainer.audio.codec import load_codec
from higgs_trainer.audio.higgs_tokenizer import HiggsTokenizerCodec
from higgs_trainer.errors import CheckpointError, UserError
from higgs_trainer.hub_names import describe_missing, find_similar, is_hub_name, is_hub_subfolder
from higgs_trainer.manifest.formats import hf_dataset, open_source
from higgs_trainer.model import model_folder
from higgs_trainer.model.loading import load_checkpoint, load_outline, load_trained
from higgs_trainer.model.model_folder import find_codec


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with two runs and a table."""
    for name in ("runs/my_voice", "runs/other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "rows.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["bosonai/higgs-audio-v2-tokenizer", "Someone/Model.v2", "some_one/a-b_c"])
def test_owner_and_name_are_a_name_on_the_hub(name: str) -> None:
    assert is_hub_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "base",
        "./base",
        "../base",
        "/data/base",
        "~/base",
        "data\\base",
        "a/b/c",
        "a/b/",
        "data/base.safetensors",
        "data/rows.CSV",
        "runs/my_voise",
        "runs/my_voice",
        "a b/c",
        "",
    ],
)
def test_what_looks_like_a_path_is_no_name_on_the_hub(name: str) -> None:
    assert not is_hub_name(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("k2-fsa/OmniVoice/audio_tokenizer", True),
        ("owner/name/a/b", True),
        ("owner/name", False),
        ("owner/name/..", False),
        ("/owner/name/folder", False),
        ("runs/my_voice/codec", False),
        ("run/my_voice/codec", False),
        ("./owner/name/folder", False),
    ],
)
def test_a_folder_of_a_repository_resembles_no_path_here(name: str, expected: bool) -> None:
    assert is_hub_subfolder(name) is expected


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("runs/my_voise", "runs/my_voice"),
        ("run/my_voice", "runs/my_voice"),
        ("rows.json", "rows.jsonl"),
        ("run/elsewhere", "runs"),
        ("nothing/like/it", None),
        ("runs/my_voice", None),
    ],
)
def test_the_path_that_was_meant_is_found(wrong: str, meant: str | None) -> None:
    assert find_similar(wrong) == meant


def test_an_absolute_path_is_corrected_too(here: Path) -> None:
    assert find_similar(here / "runs" / "my_voise") == str(here / "runs" / "my_voice")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("runs/my_voise", "Did you mean runs/my_voice?"),
        ("whatever", "has the form owner/name"),
        ("runs/whatever", "because there is a folder runs"),
        ("./whatever", "has the form owner/name"),
        ("rows.jsonl", "is a file, not a folder"),
    ],
)
def test_the_message_says_what_is_wrong(name: str, message: str) -> None:
    assert message in describe_missing(name)


READERS = {
    "load_checkpoint": load_checkpoint,
    "load_outline": load_outline,
    "load_trained": load_trained,
    "find_codec": find_codec,
    "load_codec": load_codec,
    "open_source": open_source,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["runs/my_voise", "my_voise", "./my_voise", "./a/b/c", "rows.json"])
def test_nothing_that_reads_models_codecs_or_data_asks_the_hub(
    reader: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        pytest.fail("the hub was asked")

    monkeypatch.setattr(model_folder, "snapshot_download", fail)
    monkeypatch.setattr(HiggsTokenizerCodec, "from_pretrained", fail)
    monkeypatch.setattr(hf_dataset, "_open", fail)
    with pytest.raises(UserError, match=r"no folder|No such file"):
        READERS[reader](name)


def test_without_a_network_a_name_on_the_hub_is_one_sentence() -> None:
    with pytest.raises(CheckpointError, match="the Hugging Face hub cannot be reached") as caught:
        load_checkpoint("someone/model")
    assert "\n" not in str(caught.value)


def test_a_misspelt_name_of_the_built_in_codec_is_corrected() -> None:
    with pytest.raises(CheckpointError, match=r"Did you mean embedded\?"):
        load_codec("embeded")
