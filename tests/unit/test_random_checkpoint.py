"""The random checkpoint is like the released one: names, sizes, token ids, settings and layout."""

import json
import runpy
from pathlib import Path

import pytest
import soundfile as sf
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig, HiggsAudioV2ForConditionalGeneration

from higgs_trainer import Recipe, prepare, train
from higgs_trainer.audio.codec import load_codec
from higgs_trainer.model.families.layouts import list_native_weights
from higgs_trainer.model.loading import load_checkpoint, load_codec_of
from higgs_trainer.model.model_folder import find_codec

script = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "build_random_checkpoint.py"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    script["write_model"](folder / "model", str(folder / "codec"), "small", seed=0)
    script["write_codec"](folder / "codec", "small", seed=0)
    return folder


def test_the_released_size_has_the_released_number_of_parameters_and_bytes() -> None:
    config = script["build_config"]("released")
    shapes = list_native_weights(config.to_dict())
    num_parameters = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert (num_parameters, 2 * num_parameters) == (5_771_283_456, 11_542_566_912)


def test_shards_hold_every_weight(tmp_path: Path) -> None:
    config = script["build_config"]("small")
    config.save_pretrained(tmp_path)
    script["write_random_weights"](config, tmp_path, seed=0, max_shard_size="5MB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 3
    _, loaded = HiggsAudioV2ForConditionalGeneration.from_pretrained(
        tmp_path, use_text_head=True, output_loading_info=True
    )
    assert not any(loaded.values())


def test_token_ids_are_those_of_the_released_configuration(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    config = json.loads((folder / "model" / "config.json").read_text())
    ids = {
        "<|begin_of_text|>": 128_000,
        "<|end_of_text|>": config["pad_token_id"],
        "<|eot_id|>": config["eos_token_id"],
        "<|audio_out_bos|>": config["audio_bos_token_id"],
        "<|reserved_special_token_6|>": config["audio_delay_token_id"],
        "<|AUDIO_OUT|>": config["audio_token_id"],
        "<|reserved_special_token_0|>": 128_002,
        "<|reserved_special_token_247|>": 128_255,
    }
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in ids} == ids
    assert len(tokenizer) == config["vocab_size"] == 128_256
    # Unlike the model's, as in the released files.
    assert tokenizer.eos_token_id == 128_001 != config["eos_token_id"]
    assert tokenizer.decode(tokenizer("Hello there, 12 words!").input_ids) == (
        "<|begin_of_text|>Hello there, 12 words!"
    )


def test_generation_keeps_repetition_aware_sampling_in_its_settings(folder: Path) -> None:
    settings = GenerationConfig.from_pretrained(folder / "model")
    assert (settings.ras_win_len, settings.ras_win_max_num_repeat) == (7, 2)


def test_the_model_and_its_codec_are_loaded_and_different_sounds_have_different_codes(folder: Path) -> None:
    checkpoint = load_checkpoint(folder / "model", dtype="bfloat16")
    codec = load_codec_of(checkpoint)
    assert codec.fingerprint == load_codec(folder / "codec").fingerprint
    assert (codec.frames_per_second, codec.num_codebooks, codec.codebook_size) == (25.0, 8, 1024)
    codes_FK = codec.encode(torch.randn(4 * 24_000, generator=torch.Generator().manual_seed(0)) * 0.2)
    assert all(len(codes_F.unique()) > 20 for codes_F in codes_FK.T)


@pytest.fixture
def prepared(folder: Path, tmp_path: Path) -> Path:
    """Two clips of noise, encoded with the codec outside the model."""
    codec = load_codec(folder / "codec")
    rows = []
    for number in range(2):
        waveform_S = torch.randn(24_000 + 960 * number, generator=torch.Generator().manual_seed(number)) * 0.1
        sf.write(tmp_path / f"{number}.wav", waveform_S.numpy(), 24_000)
        rows.append(
            json.dumps({"audio": f"{number}.wav", "text": f"A text of number {number} is read here."})
        )
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    return prepare(tmp_path / "rows.jsonl", tmp_path / "prepared", codec=codec).folder


def test_full_fine_tuning_keeps_the_text_head_and_the_special_tokens(
    folder: Path, prepared: Path, tmp_path: Path
) -> None:
    """The tokenizer's end of text is not the model's end, and no loss reads the text head."""
    recipe = Recipe(
        model={"name_or_path": str(folder / "model"), "codec": str(folder / "codec")},
        data={"train": str(prepared)},
        training={"output_dir": str(tmp_path / "run"), "max_steps": 1, "use_cpu": True, "learning_rate": 0.1},
    )
    train(recipe)
    for name in ("config.json", "generation_config.json"):
        base, trained = (
            json.loads((path / name).read_text()) for path in (folder / "model", tmp_path / "run")
        )
        ids = ("bos_token_id", "eos_token_id", "pad_token_id")
        assert {id: trained[id] for id in ids} == {id: base[id] for id in ids}
    base, trained = (load_file(path / "model.safetensors") for path in (folder / "model", tmp_path / "run"))
    assert trained.keys() == base.keys()
    assert torch.equal(trained["text_lm_head.weight"], base["text_lm_head.weight"].float())
    assert not torch.equal(trained["audio_lm_head.weight"], base["audio_lm_head.weight"].float())
    assert find_codec(tmp_path / "run") == str(folder / "codec")
