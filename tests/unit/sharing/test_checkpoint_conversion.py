"""Conversion from Boson's layout to that of transformers and back.

The logits of Boson's class are in tests/golden/checkpoints. tests/boson/test_conversion_boson.py checks that the class
still computes them, and that it opens converted checkpoints.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

from golden.write_checkpoints import FOLDER, ID, run_native
from higgs_trainer.cli import main
from higgs_trainer.dataset.context import Context
from higgs_trainer.errors import CheckpointError, UserError
from higgs_trainer.model.families.layouts import list_native_weights, rename_to_boson
from higgs_trainer.model.loading import load_checkpoint
from higgs_trainer.model.prompt import encode_prompt
from higgs_trainer.sharing import checkpoint_conversion
from higgs_trainer.sharing.checkpoint_conversion import convert_checkpoint
from reading import count_bytes_in_use
from tiny import tiny_checkpoint

BOSON, NATIVE = FOLDER / "boson", FOLDER / "native"


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: weight for path in folder.glob("*.safetensors") for name, weight in load_file(path).items()}


def open_native(folder: Path) -> HiggsAudioV2ForConditionalGeneration:
    model, found = HiggsAudioV2ForConditionalGeneration.from_pretrained(
        folder, use_text_head=True, output_loading_info=True
    )
    assert not any(found[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys")), found
    return model.eval()


def check_logits(model, expected_file: Path) -> None:
    """Compute the logits of a conversation with a reference: text at each position, audio at each target column."""
    expected = load_file(expected_file)
    logits = run_native(model, expected["ids_T"], expected["reference_KP"], expected["target_KP"])
    for name, value in logits.items():
        # Constant logits would agree without proving anything.
        assert expected[name].std() > 0.3
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=0)


def test_transformers_class_computes_the_logits_of_bosons_class(tmp_path):
    done = convert_checkpoint(BOSON, tmp_path / "native")
    assert (done.model_type, done.num_weights, done.left_out) == ("higgs_audio_v2", 33, ())
    check_logits(open_native(tmp_path / "native"), FOLDER / "boson_expected.safetensors")


def test_the_golden_native_logits_are_those_of_transformers_class():
    check_logits(open_native(NATIVE), FOLDER / "native_expected.safetensors")


@pytest.mark.parametrize("source", [BOSON, NATIVE], ids=["boson", "native"])
def test_a_round_trip_keeps_every_weight_bit_for_bit(source, tmp_path):
    convert_checkpoint(source, tmp_path / "there")
    convert_checkpoint(tmp_path / "there", tmp_path / "back")
    before, there, back = map(weights_of, (source, tmp_path / "there", tmp_path / "back"))
    assert before.keys() == back.keys()
    assert not before.keys() & there.keys()
    assert all(torch.equal(weight, back[name]) for name, weight in before.items())


def test_a_round_trip_keeps_every_field_of_the_configuration(tmp_path):
    convert_checkpoint(NATIVE, tmp_path / "boson")
    convert_checkpoint(tmp_path / "boson", tmp_path / "native")
    before, after = (
        HiggsAudioV2Config.from_pretrained(folder).to_dict() for folder in (NATIVE, tmp_path / "native")
    )
    assert before == after


def test_fields_of_the_configuration_and_special_ids(tmp_path):
    convert_checkpoint(BOSON, tmp_path / "native")
    config = HiggsAudioV2Config.from_pretrained(tmp_path / "native")
    assert (config.num_codebooks, config.codebook_size) == (3, 13)
    assert (config.audio_stream_bos_id, config.audio_stream_eos_id) == (11, 12)
    ids = {
        "audio_token_id": "<|AUDIO_OUT|>",
        "audio_bos_token_id": "<|audio_out_bos|>",
        "audio_delay_token_id": "<|reserved_special_token_6|>",
        "eos_token_id": "<|eot_id|>",
        "bos_token_id": "<|begin_of_text|>",
        "pad_token_id": "<|end_of_text|>",
    }
    assert {name: getattr(config, name) for name in ids} == {name: ID[token] for name, token in ids.items()}
    assert config.rope_parameters == {
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 32.0,
        "high_freq_factor": 0.5,
        "low_freq_factor": 0.125,
        "original_max_position_embeddings": 16,
    }


def test_the_list_of_weights_is_that_of_the_class():
    config = HiggsAudioV2Config.from_pretrained(NATIVE, attention_bias=True, mlp_bias=True)
    with torch.device("meta"):
        model = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True)
    listed = list_native_weights(config.to_dict())
    assert listed == {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    assert len({rename_to_boson(name) for name in listed}) == len(listed)


def test_a_converted_checkpoint_can_be_trained(tmp_path):
    convert_checkpoint(BOSON, tmp_path / "native")
    checkpoint = load_checkpoint(tmp_path / "native")
    ids_T = encode_prompt(checkpoint.tokenizer, "a b", Context(), num_codebooks=3)
    assert ids_T[0] == ID["<|begin_of_text|>"]
    assert ids_T[-1] == ID["<|audio_out_bos|>"]
    assert AutoTokenizer.from_pretrained(tmp_path / "native").pad_token == "<|end_of_text|>"


def test_with_the_released_codebooks_the_processor_names_the_released_tokenizer(tmp_path):
    checkpoint = tiny_checkpoint()
    config = HiggsAudioV2Config.from_dict(
        {**checkpoint.model.config.to_dict(), "codebook_size": 1026, "audio_stream_bos_id": 1024}
        | {"audio_stream_eos_id": 1025}
    )
    HiggsAudioV2ForConditionalGeneration(config, use_text_head=True).save_pretrained(tmp_path / "source")
    checkpoint.tokenizer.add_special_tokens({"additional_special_tokens": ["<|AUDIO|>"]})
    checkpoint.tokenizer.save_pretrained(tmp_path / "source")
    convert_checkpoint(tmp_path / "source", tmp_path / "boson")
    convert_checkpoint(tmp_path / "boson", tmp_path / "native")
    sampling = json.loads((tmp_path / "native" / "generation_config.json").read_text())
    assert (sampling["ras_win_len"], sampling["ras_win_max_num_repeat"]) == (7, 2)
    processor = json.loads((tmp_path / "native" / "processor_config.json").read_text())
    assert processor["audio_tokenizer"]["audio_tokenizer_name_or_path"] == "bosonai/higgs-audio-v2-tokenizer"
    assert not (tmp_path / "boson" / "processor_config.json").exists()


def test_settings_of_generation_are_kept(tmp_path):
    source = shutil.copytree(NATIVE, tmp_path / "source")
    settings = {"temperature": 0.3, "ras_win_len": 5, "eos_token_id": 1}
    (source / "generation_config.json").write_text(json.dumps(settings))
    convert_checkpoint(source, tmp_path / "boson")
    convert_checkpoint(tmp_path / "boson", tmp_path / "native")
    written = json.loads((tmp_path / "native" / "generation_config.json").read_text())
    assert written == settings | {
        "bos_token_id": ID["<|begin_of_text|>"],
        "eos_token_id": ID["<|eot_id|>"],
        "pad_token_id": ID["<|end_of_text|>"],
    }


def test_no_more_than_one_weight_is_in_memory(tmp_path, monkeypatch):
    bytes_in_use = count_bytes_in_use(monkeypatch, checkpoint_conversion)
    convert_checkpoint(BOSON, tmp_path / "native")
    sizes = [weight.nbytes for weight in weights_of(BOSON).values()]
    assert bytes_in_use.most == max(sizes) < sum(sizes) / 10


def test_a_split_matrix_is_joined(tmp_path):
    source = shutil.copytree(BOSON, tmp_path / "boson")
    weights = weights_of(source)
    for name, kind, row in (
        ("embed_tokens", "embedding", 21),
        ("audio_decoder_proj.audio_lm_head", "linear", 17),
        ("audio_decoder_proj.text_lm_head", "linear", 30),
    ):
        whole = weights.pop(f"{name}.weight")
        weights[f"{name}.{kind}_frozen.weight"] = whole[:row].contiguous()
        weights[f"{name}.{kind}_trainable.weight"] = whole[row:].contiguous()
    weights["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    save_file(weights, source / "model.safetensors")
    done = convert_checkpoint(source, tmp_path / "native")
    assert done.left_out == ("layers.0.self_attn.rotary_emb.inv_freq",)
    check_logits(open_native(tmp_path / "native"), FOLDER / "boson_expected.safetensors")


def test_shards_are_read_and_written(tmp_path, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["convert", str(BOSON), "-o", str(tmp_path / "native"), "--max-shard-size", "9KB"])
    assert "33 weights, higgs_audio_v2" in capsys.readouterr().out
    assert len(list((tmp_path / "native").glob("*.safetensors"))) > 2
    check_logits(open_native(tmp_path / "native"), FOLDER / "boson_expected.safetensors")
    convert_checkpoint(tmp_path / "native", tmp_path / "boson")
    assert weights_of(tmp_path / "boson").keys() == weights_of(BOSON).keys()


def edit_weights(folder: Path, edit) -> None:
    weights = weights_of(folder)
    edit(weights)
    save_file(weights, folder / "model.safetensors")


def edit_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def drop_field(folder: Path, name: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config[name]
    (folder / "config.json").write_text(json.dumps(config))


AUDIO_MLP = "layers.1.audio_mlp.up_proj.weight"
SPOILT = {
    "missing": (BOSON, lambda f: edit_weights(f, lambda w: w.pop(AUDIO_MLP)), rf"1 missing: {AUDIO_MLP}$"),
    "left over": (
        BOSON,
        lambda f: edit_weights(f, lambda w: w.update({"audio_tower.conv1.weight": torch.ones(2)})),
        r"1 left over: audio_tower\.conv1\.weight$",
    ),
    "not finite": (
        BOSON,
        lambda f: edit_weights(f, lambda w: w[AUDIO_MLP][2].fill_(float("inf"))),
        rf"not finite: {AUDIO_MLP}\.",
    ),
    "not a float": (
        BOSON,
        lambda f: edit_weights(f, lambda w: w.update({AUDIO_MLP: w[AUDIO_MLP].to(torch.int8)})),
        rf"not floats: {AUDIO_MLP} I8\.",
    ),
    "both": (
        BOSON,
        lambda f: edit_weights(f, lambda w: w.update(x=w.pop("norm.weight"))),
        r"1 missing: norm\.weight\n  1 left over: x$",
    ),
    "shape": (
        BOSON,
        lambda f: edit_config(f, audio_codebook_size=12),
        r"2 of another shape .*audio_codebook_embeddings\.weight \(39, 18\), not \(42, 18\)",
    ),
    "no text head": (
        NATIVE,
        lambda f: edit_weights(f, lambda w: w.pop("text_lm_head.weight")),
        r"1 missing: text_lm_head\.weight$",
    ),
    "stack": (BOSON, lambda f: edit_config(f, audio_adapter_type="stack"), "audio_adapter_type is 'stack'"),
    "some layers": (BOSON, lambda f: edit_config(f, audio_dual_ffn_layers=[1]), "not all 2 layers"),
    "tower": (BOSON, lambda f: edit_config(f, skip_audio_tower=False), "skip_audio_tower is False, not True"),
    "no delay": (BOSON, lambda f: edit_config(f, use_delay_pattern=False), "use_delay_pattern is False"),
    "no tokenizer": (BOSON, lambda f: (f / "tokenizer.json").unlink(), r"tokenizer\.json is missing"),
    "no config": (BOSON, lambda f: (f / "config.json").unlink(), "cannot be read"),
    "another model": (BOSON, lambda f: edit_config(f, model_type="gpt2"), "is a gpt2 model"),
    "a field short": (NATIVE, lambda f: drop_field(f, "codebook_size"), r"config\.json lacks codebook_size"),
    "no weights": (
        BOSON,
        lambda f: (f / "model.safetensors").unlink(),
        "has no weights: model.safetensors is missing",
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_weights_that_do_not_fit_are_listed_and_nothing_is_written(tmp_path, what):
    original, spoil, message = SPOILT[what]
    source = shutil.copytree(original, tmp_path / "source")
    spoil(source)
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(source, tmp_path / "converted")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_missing_token_is_named(tmp_path):
    source = shutil.copytree(NATIVE, tmp_path / "source")
    path = source / "tokenizer.json"
    path.write_text(path.read_text().replace("<|AUDIO|>", "<|other|>"))
    with pytest.raises(CheckpointError, match=r"has no token <\|AUDIO\|>"):
        convert_checkpoint(source, tmp_path / "boson")


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        convert_checkpoint(BOSON, tmp_path)
