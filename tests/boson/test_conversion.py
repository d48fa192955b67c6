"""Boson's class loads what `convert` writes for it, and computes the golden logits."""

from pathlib import Path

import pytest
import torch
from boson_multimodal.model.higgs_audio import HiggsAudioModel
from safetensors.torch import load_file
from transformers import AutoTokenizer

from golden.write_checkpoints import FOLDER, ID, run_boson
from higgs_trainer.sharing.checkpoint_conversion import convert_checkpoint


def open_boson(folder: Path) -> HiggsAudioModel:
    model, found = HiggsAudioModel.from_pretrained(folder, output_loading_info=True)
    assert not any(found[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys")), found
    return model.eval()


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "boson"
    convert_checkpoint(FOLDER / "native", folder)
    return folder


def check_logits(model: HiggsAudioModel, expected_file: Path) -> None:
    expected = load_file(expected_file)
    logits = run_boson(model, expected["ids_T"], expected["reference_KP"], expected["target_KP"])
    for name, value in logits.items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=0)


def test_bosons_class_computes_the_logits_of_transformers_from_a_converted_checkpoint(converted):
    check_logits(open_boson(converted), FOLDER / "native_expected.safetensors")


def test_bosons_class_computes_the_golden_logits_from_its_own_checkpoint():
    check_logits(open_boson(FOLDER / "boson"), FOLDER / "boson_expected.safetensors")


def test_a_converted_checkpoint_has_the_fields_that_bosons_code_reads(converted):
    config = open_boson(converted).config
    assert (config.audio_num_codebooks, config.audio_codebook_size) == (3, 11)
    assert (config.audio_stream_bos_id, config.audio_stream_eos_id) == (11, 12)
    assert config.audio_in_token_idx == ID["<|AUDIO|>"]
    assert config.audio_out_token_idx == ID["<|AUDIO_OUT|>"]
    assert config.audio_out_bos_token_id == ID["<|audio_out_bos|>"]
    assert config.audio_eos_token_id == ID["<|audio_eos|>"]
    assert [config.use_delay_pattern, config.encode_audio_in_tokens, config.skip_audio_tower] == [True] * 3


def test_the_old_transformers_loads_the_tokenizer(converted):
    tokenizer = AutoTokenizer.from_pretrained(converted, config=None)
    ids = tokenizer("a <|AUDIO_OUT|> b", add_special_tokens=False)["input_ids"]
    assert ids == [ID["a"], ID["<|AUDIO_OUT|>"], ID["b"]]
    assert tokenizer.pad_token_id == ID["<|end_of_text|>"]
