"""Write a checkpoint like the released one, and its codec, with random weights: to try every command at the real size.

python scripts/build_random_checkpoint.py --size small -o build/checkpoint

The model is written to DIR/model in the layout of the hub, weight by weight, so that memory stays below 3 GB. The codec
is written to DIR/codec. Names, token ids and settings are those of the released files; only the sizes of `--size small`
are others. The ids of the two tokens around a scene are not known here: they take the next free ids.

With `--hub-cache`, DIR becomes a cache of the Hugging Face hub with both repositories. With HF_HUB_CACHE=DIR and
HF_HUB_OFFLINE=1, every command finds them under their hub names, as after a download.
"""

import argparse
import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    DacFeatureExtractor,
    GenerationConfig,
    HiggsAudioV2Config,
    HiggsAudioV2TokenizerConfig,
    PreTrainedTokenizerFast,
)

from higgs_trainer.audio.tokenizer_class import load_tokenizer_class
from higgs_trainer.files import write_json
from higgs_trainer.model.families.layouts import list_native_weights
from higgs_trainer.model.weight_writing import write_weights

FAMILIES = ("higgs_audio_v2",)
MODEL_NAME, CODEC_NAME = "bosonai/higgs-tts-2-3b-base", "bosonai/higgs-audio-v2-tokenizer"
COMMIT = "0" * 40
"""The commit of both repositories in a hub cache."""
MAX_SHARD_SIZE = "5GB"

NUM_ORDINARY = 128_000
NUM_SPECIAL = 256
SPECIAL_TOKENS = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    2: "<|reserved_special_token_0|>",
    3: "<|reserved_special_token_1|>",
    4: "<|finetune_right_pad_id|>",
    5: "<|reserved_special_token_2|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
    11: "<|audio_bos|>",
    12: "<|audio_eos|>",
    13: "<|audio_out_bos|>",
    14: "<|reserved_special_token_6|>",
    15: "<|AUDIO|>",
    16: "<|AUDIO_OUT|>",
    17: "<|scene_desc_start|>",
    18: "<|scene_desc_end|>",
}
"""Number after the ordinary tokens -> token: those of Llama 3.2, of which Higgs Audio renamed some."""
WORDS = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3's tokenizer, which the released model uses, splits a text."""

SMALL_MODEL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
RATIOS = [8, 5, 4, 2, 3]
"""Strides of the acoustic encoder. Their product is 960 samples: 25 frames a second."""
RELEASED_ACOUSTIC = {"encoder_hidden_size": 64, "decoder_hidden_size": 1024, "hidden_size": 256}
SMALL_ACOUSTIC = {"encoder_hidden_size": 8, "decoder_hidden_size": 32, "hidden_size": 12}
SMALL_SEMANTIC = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "conv_dim": [6] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
CALIBRATION_SECONDS = 8


def build_config(size: str) -> HiggsAudioV2Config:
    """Build the configuration. transformers' defaults are those of the released model, but for the stream tokens."""
    sizes: dict[str, Any] = SMALL_MODEL if size == "small" else {}
    config = HiggsAudioV2Config(codebook_size=1026, dtype="bfloat16", **sizes)
    config.architectures = ["HiggsAudioV2ForConditionalGeneration"]
    return config


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a byte-level BPE tokenizer with the ids of the released one. Most ordinary tokens occur in no text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(WORDS, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2_000, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(_read_texts(), trainer)
    learned = json.loads(bpe.to_str())["model"]
    vocabulary = dict(learned["vocab"])
    for index in range(len(vocabulary), NUM_ORDINARY):
        vocabulary[f"<unused {index}>"] = index
    bpe.model = models.BPE(vocabulary, [tuple(pair) for pair in learned["merges"]])
    bpe.decoder = decoders.ByteLevel()
    special = [SPECIAL_TOKENS.get(i, f"<|reserved_special_token_{i - 8}|>") for i in range(NUM_SPECIAL)]
    bpe.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    begin = SPECIAL_TOKENS[0]
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1", special_tokens=[(begin, NUM_ORDINARY)]
    )
    template = resources.files("higgs_trainer.model").joinpath("chat_template.jinja").read_text("utf-8")
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=begin,
        eos_token=SPECIAL_TOKENS[1],
        pad_token=SPECIAL_TOKENS[1],
        model_max_length=131_072,
        chat_template=template,
    )


def _read_texts() -> Iterator[str]:
    """Yield English text: the documentation strings of Python's library."""
    for module in (argparse, json, torch.nn, torch.optim):
        for value in vars(module).values():
            yield str(getattr(value, "__doc__", None) or "")


def write_random_weights(
    config: HiggsAudioV2Config, folder: Path, *, seed: int, max_shard_size: str = MAX_SHARD_SIZE
) -> int:
    """Write random bfloat16 weights, the text head included, one at a time. Return their size in bytes."""
    generator = torch.Generator().manual_seed(seed)
    planned = {
        name: torch.empty(shape, dtype=torch.bfloat16, device="meta")
        for name, shape in list_native_weights(config.to_dict()).items()
    }
    write_weights(
        folder,
        planned,
        lambda name: _draw(planned[name].shape, std=config.initializer_range, generator=generator),
        max_shard_size=max_shard_size,
    )
    return sum(weight.nbytes for weight in planned.values())


def _draw(shape: torch.Size, *, std: float, generator: torch.Generator) -> Tensor:
    """Draw a matrix; a vector is the weight of a norm, and is all ones."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, std, generator=generator)


def write_model(folder: Path, codec: str, size: str, *, seed: int) -> int:
    """Write the model in the layout of the hub. Return the size of its weights in bytes.

    Args:
        codec: the folder or hub name of the codec, which the processor of the model names.
    """
    folder.mkdir(parents=True)
    config, tokenizer = build_config(size), build_tokenizer()
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # As transformers' conversion of the released model writes it.
    GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        ras_win_len=7,
        ras_win_max_num_repeat=2,
        use_text_head=True,
    ).save_pretrained(folder)
    extractor = build_feature_extractor()
    audio_tokenizer = {
        "audio_tokenizer_class": "HiggsAudioV2TokenizerModel",
        "audio_tokenizer_name_or_path": codec,
    }
    processor = {
        "processor_class": "HiggsAudioV2Processor",
        "audio_tokenizer": audio_tokenizer,
        "feature_extractor": extractor.to_dict(),
        "audio_token": SPECIAL_TOKENS[16],
        "audio_bos_token": SPECIAL_TOKENS[13],
        "audio_eos_token": SPECIAL_TOKENS[12],
        "audio_stream_bos_id": config.audio_stream_bos_id,
        "audio_stream_eos_id": config.audio_stream_eos_id,
    }
    write_json(folder / "processor_config.json", processor)
    return write_random_weights(config, folder, seed=seed)


def build_feature_extractor() -> DacFeatureExtractor:
    """Build the feature extractor of the processor, as transformers' conversion of the released model sets it."""
    return DacFeatureExtractor(
        feature_size=1,
        hop_length=1,
        padding_side="right",
        padding_value=0.0,
        sampling_rate=24_000,
        return_attention_mask=True,
    )


def write_codec(folder: Path, size: str, *, seed: int) -> None:
    """Write a codec of 25 frames a second and 8 codebooks of 1,024 codes, whose random weights give different codes."""
    acoustic = SMALL_ACOUSTIC if size == "small" else RELEASED_ACOUSTIC
    semantic = SMALL_SEMANTIC if size == "small" else {}
    config = HiggsAudioV2TokenizerConfig(
        acoustic_model_config={
            "model_type": "dac",
            "downsampling_ratios": RATIOS,
            "upsampling_ratios": RATIOS,
            **acoustic,
        },
        semantic_model_config={"model_type": "hubert", "mask_time_prob": 0.0, **semantic},
        target_bandwidths=[0.5, 1, 1.5, 2],
    )
    torch.manual_seed(seed)
    model = load_tokenizer_class()(config).eval()
    _spread_codebooks(model)
    model.save_pretrained(folder)
    build_feature_extractor().save_pretrained(folder)


@torch.no_grad()
def _spread_codebooks(model: Any) -> None:
    """Put the entries of each codebook where the residuals of a test sound are, or all frames would get one code."""
    num_samples = CALIBRATION_SECONDS * model.config.sample_rate
    times_S = torch.arange(num_samples) / model.config.sample_rate
    loudness_S = 0.5 + 0.5 * torch.sin(2 * torch.pi * 3 * times_S)
    tone_S = torch.sin(2 * torch.pi * (80 + 400 * times_S) * times_S)
    wave_S = loudness_S * (0.2 * tone_S + 0.1 * torch.randn(num_samples))
    residual_BDF = _embed(model, wave_S)
    for quantizer in model.quantizer.quantizers:
        projected_FD = quantizer.project_in(residual_BDF.transpose(1, 2))[0]
        entries_CD = projected_FD[torch.randint(len(projected_FD), (model.config.codebook_size,))]
        jitter_CD = 0.3 * projected_FD.std(dim=0) * torch.randn_like(entries_CD)
        quantizer.codebook.embed.copy_(entries_CD + jitter_CD)
        residual_BDF = residual_BDF - quantizer.decode(quantizer.encode(residual_BDF))


def _embed(model: Any, wave_S: Tensor) -> Tensor:
    """Return what the codec quantizes (1, D, F): the output of its module `fc`."""
    seen: list[Tensor] = []
    watch = model.fc.register_forward_hook(lambda module, args, output: seen.append(output))
    model.encode(wave_S[None, None])
    watch.remove()
    return seen[0].transpose(1, 2)


def add_to_hub_cache(cache: Path, name: str) -> Path:
    """Add a repository to a hub cache, and return the folder for its files."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return repository / "snapshots" / COMMIT


def main() -> None:
    """Write both folders."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=FAMILIES, default=FAMILIES[0])
    parser.add_argument("--size", choices=("released", "small"), required=True)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--hub-cache", action="store_true", help="lay DIR out as a cache of the hub")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.hub_cache:
        model, codec = (add_to_hub_cache(arguments.output, name) for name in (MODEL_NAME, CODEC_NAME))
        codec_name = CODEC_NAME
    else:
        model, codec = arguments.output / "model", arguments.output / "codec"
        codec_name = str(codec.resolve())
    total = write_model(model, codec_name, arguments.size, seed=arguments.seed)
    print(f"{model}: {total / 1e9:.2f} GB of random weights")
    write_codec(codec, arguments.size, seed=arguments.seed)
    print(f"{codec}: a codec with random weights")


if __name__ == "__main__":
    main()
