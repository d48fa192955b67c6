"""Models, codecs and tokenizers that do not fit together are refused when they are loaded, with a remedy."""

import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config

from higgs_trainer.audio.mel_codec import MelCodec
from higgs_trainer.demo.blank_model import write_blank_model
from higgs_trainer.errors import CheckpointError
from higgs_trainer.model.loading import load_checkpoint, load_codec_of, load_trained

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 1, "num_heads": 2}


def fit_codec(codebook_size):
    return MelCodec.fit([torch.randn(24_000) * 0.1], codebook_size=codebook_size, seed=0)


@pytest.fixture
def folder(tmp_path):
    write_blank_model(tmp_path / "model", fit_codec(8), seed=0, **SIZES)
    return tmp_path / "model"


def test_a_model_finds_the_codec_in_its_folder(folder):
    checkpoint = load_checkpoint(folder)
    assert load_codec_of(checkpoint).codebook_size == checkpoint.num_codes == 8
    assert checkpoint.model.generation_config.do_sample is False


def test_a_codec_of_another_size_is_refused(folder, tmp_path):
    fit_codec(5).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"8 codebooks of 5 codes, but the model .* 8 codebooks of 8"):
        load_codec_of(load_checkpoint(folder), str(tmp_path / "other"))


def test_a_folder_without_a_codec_says_how_to_name_one(folder):
    for path in (folder / "codec").iterdir():
        path.unlink()
    (folder / "codec").rmdir()
    with pytest.raises(CheckpointError, match="--codec"):
        load_codec_of(load_checkpoint(folder))


def test_stream_tokens_that_collide_with_codes_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "audio_stream_eos_id": config["codebook_size"]})
    )
    with pytest.raises(CheckpointError, match="Set it to 11"):
        load_checkpoint(folder)


def test_another_kind_of_model_is_refused(tmp_path):
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="gpt2"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_in_bosons_layout_says_how_to_convert_it():
    with pytest.raises(CheckpointError, match="higgs-trainer convert"):
        load_checkpoint(Path(__file__).resolve().parents[2] / "golden" / "checkpoints" / "boson")


def test_a_name_that_does_not_exist_is_refused():
    with pytest.raises(CheckpointError, match="no-user/no-model"):
        load_trained("no-user/no-model")
