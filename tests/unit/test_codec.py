"""A codec is found by its name, and what is none is refused by name."""

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from higgs_trainer.data import codec as codec_module
from higgs_trainer.data.codec import HiggsTokenizerCodec, load_codec
from higgs_trainer.data.mel_codec import MelCodec
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
    (package / "assets").mkdir(parents=True)
    mel_folder.rename(package / "assets" / "codec")
    monkeypatch.setattr(codec_module, "files", lambda name: {"higgs_trainer": package}[name])
    assert load_codec("embedded").name == "tiny"


def test_a_damaged_folder_is_named(mel_folder: Path) -> None:
    config = json.loads((mel_folder / "codec_config.json").read_text())
    (mel_folder / "codec_config.json").write_text(json.dumps(config | {"fingerprint": "0" * 16}))
    with pytest.raises(CheckpointError, match="damaged"):
        load_codec(mel_folder)
    (mel_folder / "codec.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="damaged"):
        load_codec(mel_folder)


def test_what_is_no_codec_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no codec"):
        load_codec(tmp_path)
    with pytest.raises(CheckpointError, match="is no codec folder"):
        load_codec(tmp_path / "none")


def test_the_real_tokenizer_needs_torchaudio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_module, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="needs torchaudio"):
        load_codec("bosonai/higgs-audio-v2-tokenizer")


class StubTokenizer(nn.Module):
    """The parts of `HiggsAudioV2TokenizerModel` that the codec uses, with its shapes: (1, 1, S) and (1, K, F)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        self.config = types.SimpleNamespace(sample_rate=24_000, codebook_size=7, target_bandwidths=[1, 2])
        self.quantizer = types.SimpleNamespace(frame_rate=25, get_num_quantizers_for_bandwidth={2: 5}.get)

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def encode(self, input_values: torch.Tensor) -> types.SimpleNamespace:
        num_frames = input_values.shape[2] // 960
        codes_KF = torch.arange(5 * num_frames).reshape(5, num_frames) % 7
        return types.SimpleNamespace(audio_codes=codes_KF[None])

    def decode(self, codes_1KF: torch.Tensor) -> types.SimpleNamespace:
        samples = codes_1KF[:, :1].repeat_interleave(960, dim=2)
        return types.SimpleNamespace(audio_values=samples.double())


def test_the_real_tokenizer_is_turned_the_codec_way() -> None:
    codec = HiggsTokenizerCodec(StubTokenizer(), "stub")
    assert (codec.num_codebooks, codec.codebook_size, codec.frames_per_second) == (5, 7, 25.0)
    codes_FK = codec.encode(torch.zeros(2880))
    assert codes_FK.tolist() == [[0, 3, 6, 2, 5], [1, 4, 0, 3, 6], [2, 5, 1, 4, 0]]
    waveform_S = codec.decode(codes_FK)
    assert waveform_S.dtype == torch.float32
    assert waveform_S[::960].tolist() == [0.0, 1.0, 2.0]


def test_a_fingerprint_follows_the_weights() -> None:
    other = StubTokenizer()
    other.weight.data[1] = 2
    same, changed = HiggsTokenizerCodec(StubTokenizer(), "a"), HiggsTokenizerCodec(other, "a")
    assert same.fingerprint == HiggsTokenizerCodec(StubTokenizer(), "b").fingerprint
    assert same.fingerprint != changed.fingerprint


def test_the_real_tokenizer_is_loaded_by_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    names = []

    def from_pretrained(name: object) -> StubTokenizer:
        names.append(name)
        return StubTokenizer()

    tokenizer_class = types.SimpleNamespace(from_pretrained=from_pretrained)
    monkeypatch.setattr(codec_module, "find_spec", lambda name: object())
    monkeypatch.setitem(
        sys.modules, "transformers", types.SimpleNamespace(HiggsAudioV2TokenizerModel=tokenizer_class)
    )
    assert load_codec(tmp_path).num_codebooks == 5
    assert names == [tmp_path]
