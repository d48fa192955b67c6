"""A codec is loaded by its name, and anything else is an error that names it."""

import json
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from higgs_trainer.audio import codec as codec_module
from higgs_trainer.audio.codec import load_codec
from higgs_trainer.audio.higgs_tokenizer import HiggsTokenizerCodec
from higgs_trainer.audio.mel_codec import MelCodec
from higgs_trainer.audio.tokenizer_class import load_tokenizer_class
from higgs_trainer.errors import CheckpointError


@pytest.fixture
def mel_folder(tmp_path: Path) -> Path:
    fitted = MelCodec.fit([torch.randn(24_000) * 0.1], codebook_size=3, seed=0, name="tiny")
    fitted.save_pretrained(tmp_path / "codec")
    return tmp_path / "codec"


def test_a_folder_is_loaded(mel_folder: Path) -> None:
    codec = load_codec(mel_folder)
    codes_FK = codec.encode(torch.randn(4801) * 0.1)
    assert codec.name == "tiny"
    assert codes_FK.shape == (6, codec.num_codebooks)
    assert codec.decode(codes_FK).ndim == 1
    assert load_codec(str(mel_folder)).fingerprint == codec.fingerprint


def test_embedded_is_the_packaged_folder(mel_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = mel_folder.parent / "package"
    package.mkdir()
    mel_folder.rename(package / "embedded_codec")
    monkeypatch.setattr(codec_module, "files", lambda name: {"higgs_trainer.audio": package}[name])
    assert load_codec("embedded").name == "tiny"


def test_a_damaged_folder_is_named(mel_folder: Path) -> None:
    config = json.loads((mel_folder / "codec_config.json").read_text())
    (mel_folder / "codec_config.json").write_text(json.dumps(config | {"fingerprint": "0" * 16}))
    with pytest.raises(CheckpointError, match="damaged"):
        load_codec(mel_folder)
    (mel_folder / "codec.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="damaged"):
        load_codec(mel_folder)


def test_a_folder_without_a_codec_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="contains no codec"):
        load_codec(tmp_path)
    with pytest.raises(CheckpointError, match=r"there is no folder .*none"):
        load_codec(tmp_path / "none")


class StubTokenizer(nn.Module):
    """The parts of `HiggsAudioV2TokenizerModel` that the codec uses, with its shapes: (1, 1, S) and (1, K, F)."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[int, ...]] = []
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        self.config = types.SimpleNamespace(sample_rate=24_000, codebook_size=7, target_bandwidths=[1, 2])
        self.quantizer = types.SimpleNamespace(frame_rate=25, get_num_quantizers_for_bandwidth={2: 5}.get)

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def encode(self, input_values: torch.Tensor) -> types.SimpleNamespace:
        self.batches.append(tuple(input_values.shape))
        num_frames = input_values.shape[2] // 960
        codes_KF = torch.arange(5 * num_frames).reshape(5, num_frames) % 7
        return types.SimpleNamespace(audio_codes=codes_KF.expand(len(input_values), -1, -1))

    def decode(self, codes_1KF: torch.Tensor) -> types.SimpleNamespace:
        samples = codes_1KF[:, :1].repeat_interleave(960, dim=2)
        return types.SimpleNamespace(audio_values=samples.double())


def test_the_real_tokenizer_has_the_interface_of_a_codec() -> None:
    codec = HiggsTokenizerCodec(StubTokenizer(), "stub")
    assert (codec.num_codebooks, codec.codebook_size, codec.frames_per_second) == (5, 7, 25.0)
    codes_FK = codec.encode(torch.zeros(2880))
    assert codes_FK.tolist() == [[0, 3, 6, 2, 5], [1, 4, 0, 3, 6], [2, 5, 1, 4, 0]]
    waveform_S = codec.decode(codes_FK)
    assert waveform_S.dtype == torch.float32
    assert waveform_S[::960].tolist() == [0.0, 1.0, 2.0]


def test_clips_of_equally_many_frames_go_through_the_real_tokenizer_together() -> None:
    tokenizer = StubTokenizer()
    codec = HiggsTokenizerCodec(tokenizer, "stub")
    codes = codec.encode_batch([torch.zeros(num_samples) for num_samples in (960, 2881, 959, 3839, 961)])
    assert [len(codes_FK) for codes_FK in codes] == [1, 4, 1, 4, 2]
    assert tokenizer.batches == [(2, 1, 960), (2, 1, 3840), (1, 1, 1920)]


def build_real_tokenizer() -> nn.Module:
    """transformers' own class with small random weights, at 25 frames a second."""
    ratios = [8, 5, 4, 2, 3]
    config = transformers.HiggsAudioV2TokenizerConfig(
        acoustic_model_config={
            "model_type": "dac",
            "encoder_hidden_size": 8,
            "decoder_hidden_size": 32,
            "hidden_size": 12,
            "downsampling_ratios": ratios,
            "upsampling_ratios": ratios,
        },
        semantic_model_config={
            "model_type": "hubert",
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 20,
            "conv_dim": [6] * 7,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        },
        target_bandwidths=[0.5, 1, 1.5, 2],
        codebook_size=1024,
    )
    model: nn.Module = load_tokenizer_class()(config)
    for quantizer in model.quantizer.quantizers:  # type: ignore[union-attr]
        quantizer.codebook.embed.normal_(std=0.1)  # they start as zeros: every code would be 0
    return model


@pytest.fixture
def real_codec() -> HiggsTokenizerCodec:
    return HiggsTokenizerCodec(build_real_tokenizer(), "tiny")


@pytest.mark.parametrize("kind", ["embedded", "real"])
def test_codes_of_a_batch_equal_those_of_each_clip(kind: str, request: pytest.FixtureRequest) -> None:
    codec = load_codec("embedded") if kind == "embedded" else request.getfixturevalue("real_codec")
    lengths = (24_000, 4801, 24_000, 960 * 5 + 1, 23_999, 31_680, 960)
    waveforms = [torch.randn(num_samples) * 0.2 for num_samples in lengths]
    batched = codec.encode_batch(waveforms)
    assert [len(codes_FK) for codes_FK in batched] == [25, 6, 25, 6, 25, 33, 1]
    assert torch.cat(batched).unique().numel() > 50
    for waveform_S, codes_FK in zip(waveforms, batched, strict=True):
        assert torch.equal(codes_FK, codec.encode(waveform_S))


def test_the_real_tokenizer_fills_the_last_frame_as_its_feature_extractor_does(
    real_codec: HiggsTokenizerCodec,
) -> None:
    waveform_S = torch.randn(10_000) * 0.2
    extractor = transformers.DacFeatureExtractor(sampling_rate=24_000, hop_length=960)
    padded = extractor(waveform_S.numpy(), sampling_rate=24_000, return_tensors="pt")
    expected_KF = real_codec._model.encode(padded["input_values"]).audio_codes[0]
    assert torch.equal(real_codec.encode(waveform_S), expected_KF.T)


def test_a_fingerprint_follows_the_weights() -> None:
    other = StubTokenizer()
    other.weight.data[1] = 2
    same, changed = HiggsTokenizerCodec(StubTokenizer(), "a"), HiggsTokenizerCodec(other, "a")
    assert same.fingerprint == HiggsTokenizerCodec(StubTokenizer(), "b").fingerprint
    assert same.fingerprint != changed.fingerprint


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer, as transformers saves it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    build_real_tokenizer().save_pretrained(folder)  # type: ignore[operator]
    return folder


def test_the_real_tokenizer_is_loaded_from_a_folder_without_torchaudio(tokenizer_folder: Path) -> None:
    codec = load_codec(tokenizer_folder)
    assert (codec.num_codebooks, codec.codebook_size, codec.frames_per_second) == (8, 1024, 25.0)
    waveform_S = torch.randn(2 * 24_000) * 0.2
    codes_FK = codec.encode(waveform_S)
    assert codes_FK.shape == (50, 8)
    assert codec.decode(codes_FK).shape == (48_000,)
    assert "torchaudio" not in sys.modules


def test_a_folder_of_a_repository_is_looked_up_there(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lay out the cache of the hub as a download leaves it."""
    repository = tmp_path / "models--k2-fsa--OmniVoice"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tokenizer_folder, repository / "snapshots" / ("0" * 40) / "audio_tokenizer")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    codec = load_codec("k2-fsa/OmniVoice/audio_tokenizer")
    assert codec.fingerprint == load_codec(tokenizer_folder).fingerprint


def change_weights(folder: Path, copy: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """Copy the folder of a tokenizer and change the weights of its file."""
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def drop_semantic_encoder(weights: dict[str, torch.Tensor]) -> None:
    for key in [key for key in weights if key.startswith("encoder_semantic.")]:
        del weights[key]


def add_language_model(weights: dict[str, torch.Tensor]) -> None:
    weights["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(2, 2)


def become_language_model(weights: dict[str, torch.Tensor]) -> None:
    weights.clear()
    add_language_model(weights)


def reshape_codebook(weights: dict[str, torch.Tensor]) -> None:
    weights["fc.bias"] = torch.zeros(3)


def clear_codebooks(weights: dict[str, torch.Tensor]) -> None:
    for key in [key for key in weights if key.endswith("codebook.embed")]:
        weights[key] = torch.zeros_like(weights[key])


def spoil_bias(weights: dict[str, torch.Tensor]) -> None:
    weights["fc.bias"][1] = float("nan")


WRONG_WEIGHTS = {
    drop_semantic_encoder: "weights are missing: encoder_semantic.",
    become_language_model: "weights are missing: acoustic_decoder.",
    add_language_model: r"1 weights are not part of a codec: model.layers.0.self_attn.q_proj.weight\. ",
    reshape_codebook: "weights have another shape: fc.bias|cannot be loaded",
    clear_codebooks: "only 1 different codes in codebook 0",
    spoil_bias: "not finite: fc.bias",
}


@pytest.mark.parametrize("change", WRONG_WEIGHTS, ids=lambda change: change.__name__)
def test_a_file_with_other_weights_is_refused(
    change: Callable[[dict[str, torch.Tensor]], None], tokenizer_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=WRONG_WEIGHTS[change]):
        load_codec(change_weights(tokenizer_folder, tmp_path / "copy", change))
