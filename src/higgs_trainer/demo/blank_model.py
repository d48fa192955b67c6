"""Write a small Higgs Audio model with random weights: configuration, tokenizer, chat template and codec.

The model class, the special tokens and the layout of the folder are those of the released checkpoint. Only the sizes
and the text vocabulary differ.
"""

import random
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    DacFeatureExtractor,
    HiggsAudioV2Config,
    HiggsAudioV2ForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from higgs_trainer.audio.mel_codec import MelCodec
from higgs_trainer.evaluation.normalized_text import DIGITS
from higgs_trainer.model.model_files import CODEC_FOLDER
from higgs_trainer.model.prompt import SYSTEM_MESSAGE

VOCABULARY_SIZE = 512
SPECIAL_TOKENS = {
    "begin": "<|begin_of_text|>",
    "pad": "<|end_of_text|>",
    "header_start": "<|start_header_id|>",
    "header_end": "<|end_header_id|>",
    "end_of_turn": "<|eot_id|>",
    "scene_start": "<|scene_desc_start|>",
    "scene_end": "<|scene_desc_end|>",
    "audio_begin": "<|audio_out_bos|>",
    "audio": "<|AUDIO_OUT|>",
    "audio_end": "<|audio_eos|>",
    "audio_delay": "<|reserved_special_token_6|>",
}
PROMPT_PIECES = (f"system\n\n{SYSTEM_MESSAGE}", "user\n\n", "assistant\n\n", "scene")
WORDS = Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s")


def build_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on ``texts``, with the special tokens and chat template of Higgs Audio v2."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(WORDS, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS.values()),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    template = (
        resources.files("higgs_trainer.model").joinpath("chat_template.jinja").read_text(encoding="utf-8")
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=SPECIAL_TOKENS["begin"],
        eos_token=SPECIAL_TOKENS["end_of_turn"],
        pad_token=SPECIAL_TOKENS["pad"],
        chat_template=template,
    )


def draw_texts() -> list[str]:
    """Draw the training texts of the tokenizer: digit strings, and the pieces of the prompt.

    The pieces are repeated so often that each becomes a few tokens.
    """
    digits = [" ".join(random.Random(seed).choices(DIGITS, k=6)) for seed in range(2000)]
    return digits + [*PROMPT_PIECES] * 5000


def build_config(
    tokenizer: PreTrainedTokenizerFast,
    *,
    num_codebooks: int,
    codebook_size: int,
    hidden_size: int,
    intermediate_size: int,
    num_layers: int,
    num_heads: int,
    max_positions: int = 2048,
) -> HiggsAudioV2Config:
    """Build the configuration of a small model.

    Args:
        codebook_size: the number of codes in a codebook, without the two stream tokens.
    """
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in SPECIAL_TOKENS.items()}
    return HiggsAudioV2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=hidden_size // num_heads,
        max_position_embeddings=max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        num_codebooks=num_codebooks,
        codebook_size=codebook_size + 2,
        audio_stream_bos_id=codebook_size,
        audio_stream_eos_id=codebook_size + 1,
        bos_token_id=ids["begin"],
        pad_token_id=ids["pad"],
        eos_token_id=ids["end_of_turn"],
        audio_token_id=ids["audio"],
        audio_bos_token_id=ids["audio_begin"],
        audio_delay_token_id=ids["audio_delay"],
    )


def write_blank_model(folder: Path, codec: MelCodec, *, seed: int, **sizes: int) -> None:
    """Write a model with random weights, its tokenizer, its feature extractor and its codec into ``folder``.

    The text vocabulary has a token for each digit and each word of the prompt, and the bytes.

    Args:
        sizes: the sizes that `build_config` takes.
    """
    tokenizer = build_tokenizer(draw_texts(), vocab_size=VOCABULARY_SIZE)
    config = build_config(
        tokenizer, num_codebooks=codec.num_codebooks, codebook_size=codec.codebook_size, **sizes
    )
    torch.manual_seed(seed)
    model = HiggsAudioV2ForConditionalGeneration(config)
    # Greedy, because the demo's voices say a digit the same way each time.
    model.generation_config.update(
        do_sample=False,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    DacFeatureExtractor(feature_size=1, sampling_rate=codec.sample_rate_hz, hop_length=1).save_pretrained(
        folder
    )
    codec.save_pretrained(folder / CODEC_FOLDER)
