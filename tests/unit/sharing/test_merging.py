"""Merging an adapter gives the same model, in a folder that plain transformers opens."""

import json
import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import torch
from peft import PeftModel, PromptTuningConfig
from safetensors.torch import load_file, save_file
from transformers import HiggsAudioV2ForConditionalGeneration

from generation import generate_texts
from higgs_trainer.audio.codec import load_codec
from higgs_trainer.audio.mel_codec import MelCodec
from higgs_trainer.cli import main
from higgs_trainer.demo.blank_model import write_blank_model
from higgs_trainer.errors import CheckpointError, UserError
from higgs_trainer.model.adapters import add_lora
from higgs_trainer.model.families import HIGGS_AUDIO_V2
from higgs_trainer.model.loading import load_checkpoint, load_codec_of, load_trained
from higgs_trainer.model.model_folder import copy_companions
from higgs_trainer.sharing import module_merging
from higgs_trainer.sharing.merging import merge_adapter
from higgs_trainer.speech.sampling import Sampling
from reading import count_bytes_in_use

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 2}
HEADS = ("audio_lm_head", "embed_audio_tokens.embed_audio_tokens")
KINDS = {
    "lora": {},
    "heads": {"modules_to_save": HEADS},
    "dora": {"use_dora": True},
    "rank_pattern": {"rank_pattern": {"q_proj": 3}, "use_rslora": True},
    "pissa": {"init_lora_weights": "pissa"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    codec = MelCodec.fit([torch.randn(24_000) * 0.1], codebook_size=13, seed=0)
    folder = tmp_path_factory.mktemp("base") / "model"
    write_blank_model(folder, codec, seed=0, **SIZES)
    return folder


def write_adapter(base: Path, folder: Path, *, noise: float = 0.05, **options) -> Path:
    """Build an adapter with random weights, all of which change the logits."""
    model = load_checkpoint(base).model
    adapted = add_lora(model, HIGGS_AUDIO_V2, target_modules="all_linear", r=4, lora_alpha=8, **options)
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and "magnitude" not in name:
            parameter.data += noise * torch.randn_like(parameter)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(base, tmp_path) -> Path:
    return write_adapter(base, tmp_path / "adapter", modules_to_save=HEADS)


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    """Compute logits over a batch of two prompts with text on both sides of a clip."""
    generator = torch.Generator().manual_seed(3)
    config = model.config
    input_ids = torch.randint(11, config.vocab_size, (2, 17), generator=generator)
    input_ids[:, 5:14] = config.audio_token_id
    codes = torch.randint(config.codebook_size, (2, 9, config.num_codebooks), generator=generator)
    mask = torch.ones(2, 9, dtype=torch.bool)
    with torch.no_grad():
        return model.eval()(input_ids=input_ids, audio_input_ids=codes, audio_input_ids_mask=mask).logits


EVERY_KIND = {
    **KINDS,
    "olora": {"init_lora_weights": "olora"},
    "alpha_pattern": {"alpha_pattern": {r"layers\.1\..*v_proj": 7}, "layers_to_transform": [1]},
    "a layer in full": {"layers_to_transform": [0], "modules_to_save": ("layers.1", "embed_tokens")},
    "some tokens": {
        "trainable_token_indices": {"embed_tokens": [1, 5], "embed_audio_tokens.embed_audio_tokens": [2]}
    },
}


def merge_in_memory(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """Merge by PEFT alone, with the whole model in float32 in memory."""
    model = HiggsAudioV2ForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


def list_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("base_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_merged_weights_are_bit_for_bit_those_of_peft(base, tmp_path, kind, base_dtype):
    adapter, source = write_adapter(base, tmp_path / "adapter", **EVERY_KIND[kind]), tmp_path / "base"
    checkpoint = load_checkpoint(base, dtype=base_dtype)
    checkpoint.model.save_pretrained(source, max_shard_size="50KB")
    checkpoint.tokenizer.save_pretrained(source)
    expected, before = merge_in_memory(source, adapter), list_bytes(source)
    for dtype in (torch.float32, torch.bfloat16):
        folder = tmp_path / str(dtype)
        merge_adapter(adapter, folder, base=source, dtype=str(dtype).removeprefix("torch."))
        merged = load_file(folder / "model.safetensors")
        assert merged.keys() == expected.keys()
        different = [
            name for name, weight in merged.items() if not torch.equal(weight, expected[name].to(dtype))
        ]
        assert different == []
    # The files are mapped while PEFT adds to the weights in place.
    assert list_bytes(source) == before


def test_no_more_than_one_module_is_in_memory(base, adapter, tmp_path, monkeypatch):
    bytes_in_use = count_bytes_in_use(monkeypatch, module_merging)
    merge_adapter(adapter, tmp_path / "merged", dtype="bfloat16")
    sizes = [weight.nbytes for weight in load_file(base / "model.safetensors").values()]
    assert max(sizes) <= bytes_in_use.most < 1.5 * max(sizes) < sum(sizes) / 2


@pytest.mark.parametrize("kind", KINDS)
def test_merged_and_unmerged_models_give_the_same_logits(base, tmp_path, kind):
    adapter = write_adapter(base, tmp_path / "adapter", **KINDS[kind])
    merge_adapter(adapter, tmp_path / "merged")
    merged, unmerged = load_checkpoint(tmp_path / "merged"), load_trained(adapter)
    assert isinstance(unmerged.model, PeftModel)
    torch.testing.assert_close(logits_of(merged.model), logits_of(unmerged.model), atol=1e-5, rtol=0)
    assert (logits_of(merged.model) - logits_of(load_checkpoint(base).model)).abs().max() > 0.1


def test_merged_and_unmerged_models_generate_the_same_codes(tmp_path):
    """Use the packaged base, which is trained, with an adapter that changes its codes."""
    base = Path(str(resources.files("higgs_trainer_demo") / "base"))
    adapter = write_adapter(base, tmp_path / "adapter", noise=0.01, modules_to_save=HEADS)
    merge_adapter(adapter, tmp_path / "merged", dtype="float32")
    sampling = Sampling(greedy=True, max_seconds=3.0)
    said_by_base, said, said_unmerged = (
        generate_texts(load_trained(folder), ["one two", "seven"], sampling=sampling)
        for folder in (base, tmp_path / "merged", adapter)
    )
    assert [len(clip.codes_FK) > 10 for clip in said] == [True, True]
    assert [torch.equal(*pair) for pair in zip(*map(codes_of, (said, said_unmerged)), strict=True)] == [
        True,
        True,
    ]
    assert [torch.equal(*pair) for pair in zip(*map(codes_of, (said, said_by_base)), strict=True)] != [
        True,
        True,
    ]


def codes_of(spoken):
    return [clip.codes_FK for clip in spoken]


def test_modules_to_save_are_copied_bit_for_bit(base, adapter, tmp_path):
    merge_adapter(adapter, tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    saved = load_file(adapter / "adapter_model.safetensors")
    for name in ("audio_lm_head.weight", "model.embed_audio_tokens.embed_audio_tokens.weight"):
        assert torch.equal(merged[name], saved[f"base_model.model.{name}"])
    before = load_file(base / "model.safetensors")
    assert {name: weight.shape for name, weight in merged.items()} == {n: w.shape for n, w in before.items()}
    assert torch.equal(merged["model.norm.weight"], before["model.norm.weight"])


def test_the_sum_is_rounded_once(base, adapter, tmp_path):
    merge_adapter(adapter, tmp_path / "float32")
    merge_adapter(adapter, tmp_path / "bfloat16", dtype="bfloat16")
    exact = load_file(tmp_path / "float32" / "model.safetensors")
    for name, weight in load_file(tmp_path / "bfloat16" / "model.safetensors").items():
        assert torch.equal(weight, exact[name].bfloat16()), name
    assert json.loads((tmp_path / "bfloat16" / "config.json").read_text())["dtype"] == "bfloat16"


def test_without_a_dtype_the_files_have_the_dtype_of_the_base(base, adapter, tmp_path):
    load_checkpoint(base, dtype="bfloat16").model.save_pretrained(tmp_path / "half")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "half" / name).write_bytes((base / name).read_bytes())
    assert merge_adapter(adapter, tmp_path / "merged", base=tmp_path / "half").dtype == "bfloat16"
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}


def test_a_text_head_of_the_base_is_kept(base, adapter, tmp_path):
    """transformers drops it on loading, without a warning."""
    with_head = tmp_path / "with_head"
    checkpoint = load_checkpoint(base)
    vocab_size, hidden_size = checkpoint.model.config.vocab_size, SIZES["hidden_size"]
    checkpoint.model.text_lm_head = torch.nn.Linear(hidden_size, vocab_size, bias=False)
    checkpoint.model.save_pretrained(with_head)
    checkpoint.tokenizer.save_pretrained(with_head)
    merge_adapter(adapter, tmp_path / "merged", base=with_head)
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert torch.equal(merged["text_lm_head.weight"], checkpoint.model.text_lm_head.weight)
    torch.testing.assert_close(
        logits_of(load_checkpoint(tmp_path / "merged").model), logits_of(load_trained(adapter).model)
    )


def test_a_configuration_with_tied_weights_ties_none(base, tmp_path):
    """The class ties no weights: text embedding and text head stay two matrices, as in the files of the base."""
    tied = tmp_path / "tied"
    checkpoint = load_checkpoint(base)
    checkpoint.model.config.tie_word_embeddings = True
    vocab_size, hidden_size = checkpoint.model.config.vocab_size, SIZES["hidden_size"]
    checkpoint.model.text_lm_head = torch.nn.Linear(hidden_size, vocab_size, bias=False)
    checkpoint.model.save_pretrained(tied)
    checkpoint.tokenizer.save_pretrained(tied)
    adapter = write_adapter(tied, tmp_path / "adapter", modules_to_save=("embed_tokens", "audio_lm_head"))
    merge_adapter(adapter, tmp_path / "merged")
    merged, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "merged", tied))
    assert merged.keys() == before.keys()
    assert torch.equal(merged["text_lm_head.weight"], before["text_lm_head.weight"])
    saved = load_file(adapter / "adapter_model.safetensors")
    assert torch.equal(
        merged["model.embed_tokens.weight"], saved["base_model.model.model.embed_tokens.weight"]
    )
    torch.testing.assert_close(
        logits_of(load_checkpoint(tmp_path / "merged").model),
        logits_of(load_trained(adapter).model),
        atol=1e-5,
        rtol=0,
    )


OPEN_ALONE = """
import sys
import torch
from transformers import AutoProcessor, AutoTokenizer, HiggsAudioV2ForConditionalGeneration

folder = sys.argv[1]
model = HiggsAudioV2ForConditionalGeneration.from_pretrained(folder)
assert model.generation_config.do_sample is False
system = {"role": "system", "content": [{"type": "text", "text": "s"}]}
words = {"role": "user", "content": [{"type": "text", "text": "one two"}]}
clip = {"role": "assistant", "content": [{"type": "audio", "audio": torch.randn(24_000).numpy()}]}
for opener, messages in ((AutoTokenizer, [words]), (AutoProcessor, [words, clip, words])):
    inputs = opener.from_pretrained(folder).apply_chat_template(
        [system, *messages], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    codes = model.generate(**inputs, max_new_tokens=12)
    assert codes.shape[-1] == 8, codes.shape
assert inputs["audio_input_ids"].shape == (1, 25 + 2 + 7, 8), inputs["audio_input_ids"].shape
assert not [name for name in sys.modules if name.startswith(("higgs_trainer", "peft"))]
"""
WRITE_TOKENIZER = """
import sys
from transformers import HiggsAudioV2TokenizerConfig, HiggsAudioV2TokenizerModel

ratios = [8, 5, 4, 2, 3]
sizes = {"encoder_hidden_size": 8, "decoder_hidden_size": 32, "hidden_size": 12}
acoustic = {"model_type": "dac", **sizes, "downsampling_ratios": ratios, "upsampling_ratios": ratios}
semantic = {"model_type": "hubert", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 20, "conv_dim": [6] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
config = HiggsAudioV2TokenizerConfig(acoustic_model_config=acoustic, semantic_model_config=semantic,
    target_bandwidths=[0.5, 1, 1.5, 2], codebook_size=1024)
HiggsAudioV2TokenizerModel(config).save_pretrained(sys.argv[1])
"""
TORCHAUDIO = """
from types import SimpleNamespace
from torch.nn.functional import interpolate

__version__ = "2.11.0"
functional = SimpleNamespace(
    resample=lambda wave, rate, new_rate: interpolate(wave, size=wave.shape[-1] * new_rate // rate, mode="linear")
)
"""


def run_alone(code: str, folder: Path, *, libraries: Path) -> None:
    """Run a script in another process, with a replacement for torchaudio, whose resampler transformers imports."""
    (libraries / "torchaudio").mkdir(parents=True, exist_ok=True)
    (libraries / "torchaudio" / "__init__.py").write_text(TORCHAUDIO)
    environment = {**os.environ, "PYTHONPATH": str(libraries)}
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_plain_transformers_opens_it_with_its_processor(tmp_path):
    """Use a base like the released one: codebooks of 1024 codes, and a processor that names the codec."""
    run_alone(WRITE_TOKENIZER, tmp_path / "tokenizer", libraries=tmp_path / "libraries")
    write_blank_model(tmp_path / "base", load_codec("embedded"), seed=0, **SIZES)
    shutil.rmtree(tmp_path / "base" / "codec")
    extractor = json.loads((tmp_path / "base" / "preprocessor_config.json").read_text())
    named = {
        "audio_tokenizer_class": "HiggsAudioV2TokenizerModel",
        "audio_tokenizer_name_or_path": str(tmp_path / "tokenizer"),
    }
    processor = {
        "processor_class": "HiggsAudioV2Processor",
        "feature_extractor": extractor,
        "audio_tokenizer": named,
    }
    (tmp_path / "base" / "processor_config.json").write_text(json.dumps(processor))
    merge_adapter(write_adapter(tmp_path / "base", tmp_path / "adapter"), tmp_path / "merged")
    run_alone(OPEN_ALONE, tmp_path / "merged", libraries=tmp_path / "libraries")


def test_a_merged_folder_needs_neither_base_nor_adapter(base, adapter, tmp_path):
    (adapter / "samples" / "step-2").mkdir(parents=True)
    (adapter / "samples" / "step-2" / "index.jsonl").write_text("{}\n")
    (adapter / "recipe.yaml").write_text("model: {}\n")
    merge_adapter(adapter, tmp_path / "merged")
    assert load_codec_of(load_checkpoint(tmp_path / "merged")).codebook_size == 13
    for name in (
        "chat_template.jinja",
        "generation_config.json",
        "recipe.yaml",
        "samples/step-2/index.jsonl",
    ):
        assert (tmp_path / "merged" / name).is_file(), name
    written = [path.read_text() for path in (tmp_path / "merged").glob("*.json")]
    assert not any(str(tmp_path) in text or str(base) in text for text in written)


def test_files_have_at_most_the_requested_size(adapter, tmp_path, capsys):
    main_result = ["merge", str(adapter), "-o", str(tmp_path / "merged"), "--max-shard-size", "60KB"]
    with pytest.raises(SystemExit, match="0"):
        main(main_result)
    assert "merged, in float32" in capsys.readouterr().out
    shards = sorted((tmp_path / "merged").glob("model-*.safetensors"))
    assert len(shards) > 2
    assert all(shard.stat().st_size < 70_000 for shard in shards)
    torch.testing.assert_close(
        logits_of(HiggsAudioV2ForConditionalGeneration.from_pretrained(tmp_path / "merged")),
        logits_of(load_trained(adapter).model),
        atol=1e-5,
        rtol=0,
    )


def test_a_folder_that_is_not_empty_is_refused_and_not_changed(adapter, tmp_path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        merge_adapter(adapter, tmp_path / "merged")
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["mine.txt"]


def edit_config(adapter, **values):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(adapter, edit):
    weights = load_file(adapter / "adapter_model.safetensors")
    edit(weights)
    save_file(weights, adapter / "adapter_model.safetensors")


INCOMPLETE = {
    "no config": (lambda a: (a / "adapter_config.json").unlink(), "adapter_config.json is missing"),
    "no weights": (
        lambda a: (a / "adapter_model.safetensors").unlink(),
        "adapter_model.safetensors is missing",
    ),
    "no base": (lambda a: edit_config(a, base_model_name_or_path=None), "--base"),
    "base gone": (lambda a: edit_config(a, base_model_name_or_path="owner/missing"), "owner/missing"),
    "a weight short": (
        lambda a: edit_weights(a, lambda w: w.pop("base_model.model.audio_lm_head.weight")),
        "lacks .*base_model.model.audio_lm_head.weight",
    ),
    "a weight too many": (
        lambda a: edit_weights(a, lambda w: w.update(extra=torch.zeros(1))),
        "the model does not have: extra",
    ),
    "half a pair short": (
        lambda a: edit_weights(a, lambda w: w.pop(sorted(n for n in w if "lora_A" in n)[0])),
        r"lacks .*lora_A",
    ),
    "another rank": (lambda a: edit_config(a, r=3), "of another shape than the model"),
    "not a number": (
        lambda a: edit_weights(a, lambda w: w[sorted(w)[0]].fill_(float("nan"))),
        "has weights that are not finite: base_model.model.audio_lm_head",
    ),
}


@pytest.mark.parametrize("what", INCOMPLETE)
def test_an_incomplete_adapter_is_an_error_and_nothing_is_written(adapter, tmp_path, what):
    spoil, message = INCOMPLETE[what]
    spoil(adapter)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=message):
        merge_adapter(adapter, tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.self_attn.q_proj.weight"])
def test_a_weight_of_the_base_that_is_not_finite_is_named_and_nothing_is_written(
    base, adapter, tmp_path, name
):
    spoilt = shutil.copytree(base, tmp_path / "spoilt")
    weights = load_file(spoilt / "model.safetensors")
    weights[name].view(-1)[3] = float("inf")
    save_file(weights, spoilt / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=rf"spoilt has weights that are not finite in float32: {name}\."
    ):
        merge_adapter(adapter, tmp_path / "merged", base=spoilt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "spoilt"]


def test_merged_weights_that_do_not_fit_into_the_dtype_are_named_and_nothing_is_written(base, tmp_path):
    adapter = write_adapter(base, tmp_path / "adapter", noise=1e3)
    with pytest.raises(CheckpointError, match=r"not finite in float16: .*audio_mlp.* and \d+ more"):
        merge_adapter(adapter, tmp_path / "merged", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_adapter_without_a_change_of_weights_is_refused(base, tmp_path):
    """A virtual token in front of each prompt is no change of a weight."""
    config = PromptTuningConfig(
        peft_type="PROMPT_TUNING",
        num_virtual_tokens=3,
        token_dim=SIZES["hidden_size"],
        num_layers=2,
        num_attention_heads=2,
        num_transformer_submodules=1,
    )
    PeftModel(load_checkpoint(base).model, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"cannot be merged .* Use it unmerged"):
        merge_adapter(tmp_path / "adapter", tmp_path / "merged", base=base)


def test_an_adapter_that_repeats_layers_is_refused(base, tmp_path):
    adapter = write_adapter(base, tmp_path / "adapter", layer_replication=[[0, 2], [1, 2]])
    with pytest.raises(
        CheckpointError, match=r"merging changed names or shapes of weights: model\.layers\.2\."
    ):
        merge_adapter(adapter, tmp_path / "merged")


def test_a_base_that_lacks_a_weight_is_refused(base, adapter, tmp_path):
    spoilt = tmp_path / "spoilt"
    load_checkpoint(base).model.save_pretrained(spoilt)
    weights = load_file(spoilt / "model.safetensors")
    del weights["model.layers.1.audio_mlp.up_proj.weight"]
    save_file(weights, spoilt / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (spoilt / name).write_bytes((base / name).read_bytes())
    with pytest.raises(CheckpointError, match=r"lacks .* model\.layers\.1\.audio_mlp\.up_proj\.weight"):
        merge_adapter(adapter, tmp_path / "merged", base=spoilt)


def test_companions_of_a_base_from_the_hub_come_from_its_cache(base, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--someone--base" / "snapshots" / "abc"
    shutil.copytree(base, snapshot)
    (tmp_path / "models--someone--base" / "refs").mkdir()
    (tmp_path / "models--someone--base" / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "merged").mkdir()
    copy_companions("someone/base", tmp_path / "merged")
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == [
        "codec",
        "preprocessor_config.json",
    ]
