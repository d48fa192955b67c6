"""Training opens a large codec without its weights, and computes its fingerprint once."""

import pickle
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from higgs_trainer import file_memory
from higgs_trainer.audio import lazy_codec
from higgs_trainer.audio.codec import Codec, load_codec
from higgs_trainer.audio.lazy_codec import CodecFacts, LazyCodec, open_codec
from higgs_trainer.audio.mel_codec import MelCodec
from higgs_trainer.errors import CheckpointError
from unit.audio.test_codec import build_real_tokenizer

SOUND_S = torch.randn(24_000, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codec")
    torch.manual_seed(0)
    build_real_tokenizer().save_pretrained(folder)  # type: ignore[operator]
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(file_memory, "SETTLED_SECONDS", -1)
    shutil.copytree(saved, tmp_path / "codec")
    return tmp_path / "codec"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of codecs whose weights were read."""
    names: list[str] = []

    def load(name: str) -> Codec:
        names.append(name)
        return load_codec(name)

    monkeypatch.setattr(lazy_codec, "load_codec", load)
    return names


def test_the_weights_are_read_for_the_fingerprint_once_and_then_when_it_encodes(
    folder: Path, loaded: list[str]
) -> None:
    whole = load_codec(folder)
    first, second = open_codec(folder), open_codec(folder)
    assert loaded == [str(folder)]
    for codec in (first, second):
        assert codec.name == whole.name
        for field in fields(CodecFacts):
            assert getattr(codec, field.name) == getattr(whole, field.name), field.name
    codes_FK = second.encode(SOUND_S)
    assert torch.equal(codes_FK, whole.encode(SOUND_S))
    assert torch.equal(second.decode(codes_FK), whole.decode(codes_FK))
    assert loaded == [str(folder)] * 2


def change_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    weights[name] = weights[name] + 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def break_the_memory(folder: Path) -> None:
    file_memory.find_memory(lazy_codec.KIND, folder).write_text('{"format": 1}')


@pytest.mark.parametrize("change", [change_a_weight, break_the_memory])
def test_a_changed_codec_or_a_broken_memory_is_read_again(
    folder: Path, loaded: list[str], change: Callable[[Path], None]
) -> None:
    before = open_codec(folder).fingerprint
    change(folder)
    after = open_codec(folder).fingerprint
    assert len(loaded) == 2
    assert after == load_codec(folder).fingerprint
    assert (after != before) is (change is change_a_weight)


def test_other_processes_get_what_the_first_one_found(
    folder: Path, loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = pickle.dumps(open_codec(folder))
    del loaded[:]

    def receive(make: Callable[[], Any]) -> Any:
        return pickle.loads(sent)

    monkeypatch.setattr(lazy_codec, "find_processes", lambda: SimpleNamespace(share=receive))
    codec = open_codec(folder)
    assert isinstance(codec, LazyCodec)
    assert loaded == []
    assert codec.fingerprint == load_codec(folder).fingerprint


def test_a_small_codec_is_loaded_at_once(tmp_path: Path) -> None:
    MelCodec.fit([SOUND_S], codebook_size=3, seed=0).save_pretrained(tmp_path / "mel")
    assert isinstance(open_codec(tmp_path / "mel"), MelCodec)
    assert isinstance(open_codec("embedded"), MelCodec)


def test_a_codec_that_is_not_there_is_the_error_of_loading(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no folder"):
        open_codec(tmp_path / "none")
