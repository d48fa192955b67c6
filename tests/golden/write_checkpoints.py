"""Writes ``tests/golden/checkpoints/boson`` or ``.../native``: a tiny checkpoint in one layout, and what its own class
computes with it. Each layout's class lives in an environment of its own (README.md beside this file):

    .venv-boson/bin/python tests/golden/write_checkpoints.py boson
    .venv/bin/python tests/golden/write_checkpoints.py native
"""

import argparse
import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "checkpoints"
SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|audio_eos|>",
    "<|audio_out_bos|>",
    "<|reserved_special_token_6|>",
    "<|AUDIO|>",
    "<|AUDIO_OUT|>",
)
WORDS = [chr(letter) for letter in range(ord("a"), ord("z") + 1)]
TOKENS = [*WORDS, *SPECIAL]
ID = {token: number for number, token in enumerate(TOKENS)}
# Pairwise different where they can be, so that no two axes are exchanged unseen; grouped-query attention.
NUM_CODES, NUM_CODEBOOKS = 11, 3
HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS = 18, 14, 2, 3, 1
ROPE = {"rope_type": "llama3", "factor": 32.0, "high_freq_factor": 0.5, "low_freq_factor": 0.125}
ROPE["original_max_position_embeddings"] = 16
ROPE_THETA, EPSILON, MAX_POSITIONS = 500.0, 3e-3, 64


def draw_weights(model: nn.Module, seed: int) -> None:
    """Large enough that every weight shows in the logits; the norms, too."""
    generator = torch.Generator().manual_seed(seed)
    for _, weight in sorted(model.named_parameters()):
        scale = 1 / math.sqrt(weight.shape[-1]) if weight.ndim > 1 else 0.3
        weight.data = (weight.ndim == 1) + scale * torch.randn(weight.shape, generator=generator)


def draw_conversation(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Words, a reference clip, words, the target clip, words: token ids (T,), with one placeholder a clip, and the
    delayed columns of both clips (K, P)."""
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        return torch.randint(len(WORDS), (count,), generator=generator).tolist()

    def columns(count: int) -> Tensor:
        return torch.randint(NUM_CODES + 2, (NUM_CODEBOOKS, count), generator=generator)

    ids = [ID["<|begin_of_text|>"], *words(3), ID["<|AUDIO|>"], *words(2), ID["<|AUDIO_OUT|>"], *words(2)]
    return torch.tensor(ids), columns(5), columns(7)


def expand(ids_T: Tensor, reference_KP: Tensor, target_KP: Tensor) -> Tensor:
    """Token ids with one placeholder a column, all of transformers' one kind: what its class reads."""
    columns = {ID["<|AUDIO|>"]: reference_KP.shape[1], ID["<|AUDIO_OUT|>"]: target_KP.shape[1]}
    expanded: list[int] = []
    for token in ids_T.tolist():
        expanded += [ID["<|AUDIO_OUT|>"]] * columns[token] if token in columns else [token]
    return torch.tensor(expanded)


def write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({token: ID[token] for token in WORDS}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "pad_token": "<|end_of_text|>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_boson(folder: Path) -> None:
    from boson_multimodal.model.higgs_audio import HiggsAudioConfig, HiggsAudioModel

    config = HiggsAudioConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": len(TOKENS),
            "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HIDDEN // HEADS,
            "max_position_embeddings": MAX_POSITIONS,
            "rms_norm_eps": EPSILON,
            "rope_theta": ROPE_THETA,
            "rope_scaling": ROPE,
            "bos_token_id": ID["<|begin_of_text|>"],
            "eos_token_id": ID["<|end_of_text|>"],
        },
        audio_adapter_type="dual_ffn_fast_forward",
        audio_dual_ffn_layers=list(range(LAYERS)),
        encode_whisper_embed=False,
        encode_audio_in_tokens=True,
        skip_audio_tower=True,
        use_delay_pattern=True,
        audio_num_codebooks=NUM_CODEBOOKS,
        audio_codebook_size=NUM_CODES,
        audio_stream_bos_id=NUM_CODES,
        audio_stream_eos_id=NUM_CODES + 1,
        audio_in_token_idx=ID["<|AUDIO|>"],
        audio_out_token_idx=ID["<|AUDIO_OUT|>"],
        audio_out_bos_token_id=ID["<|audio_out_bos|>"],
        audio_eos_token_id=ID["<|audio_eos|>"],
        pad_token_id=ID["<|end_of_text|>"],
    )
    model = HiggsAudioModel(config).eval()
    draw_weights(model, seed=0)
    model.save_pretrained(folder)
    write_expected(folder, seed=1, run=lambda *conversation: run_boson(model, *conversation))


@torch.no_grad()
def run_boson(model: nn.Module, ids_T: Tensor, reference_KP: Tensor, target_KP: Tensor) -> dict[str, Tensor]:
    """Logits over text at every position, over audio at the target's columns, as the class gives them."""
    outputs = model(
        input_ids=ids_T[None],
        attention_mask=torch.ones_like(ids_T[None]),
        audio_in_ids=reference_KP,
        audio_in_ids_start=torch.tensor([0]),
        audio_out_ids=target_KP,
        audio_out_ids_start=torch.tensor([0]),
        audio_out_ids_start_group_loc=torch.tensor([0]),
    )
    num_real = int(outputs.attention_mask.sum())  # it fills up to a multiple of eight, at the left
    return {"text_logits": outputs.logits[0, -num_real:], "audio_logits": outputs.audio_logits}


def write_native(folder: Path) -> None:
    from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

    config = HiggsAudioV2Config(
        vocab_size=len(TOKENS),
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HIDDEN // HEADS,
        max_position_embeddings=MAX_POSITIONS,
        rms_norm_eps=EPSILON,
        rope_parameters={**ROPE, "rope_theta": ROPE_THETA},
        num_codebooks=NUM_CODEBOOKS,
        codebook_size=NUM_CODES + 2,
        audio_stream_bos_id=NUM_CODES,
        audio_stream_eos_id=NUM_CODES + 1,
        audio_token_id=ID["<|AUDIO_OUT|>"],
        audio_bos_token_id=ID["<|audio_out_bos|>"],
        audio_delay_token_id=ID["<|reserved_special_token_6|>"],
        bos_token_id=ID["<|begin_of_text|>"],
        eos_token_id=ID["<|eot_id|>"],
        pad_token_id=ID["<|end_of_text|>"],
    )
    model = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True).eval()
    draw_weights(model, seed=2)
    model.save_pretrained(folder)
    write_expected(folder, seed=3, run=lambda *conversation: run_native(model, *conversation))


@torch.no_grad()
def run_native(model: nn.Module, ids_T: Tensor, reference_KP: Tensor, target_KP: Tensor) -> dict[str, Tensor]:
    """The same from transformers' class, whose forward keeps its text logits to itself."""
    columns_1PK = torch.cat([reference_KP, target_KP], dim=1).T[None]
    outputs = model.model(
        input_ids=expand(ids_T, reference_KP, target_KP)[None],
        audio_input_ids=columns_1PK,
        audio_input_ids_mask=torch.ones_like(columns_1PK[..., 0], dtype=torch.bool),
    )
    hidden_TD = outputs.last_hidden_state[0]
    is_audio_T = expand(ids_T, reference_KP, target_KP) == ID["<|AUDIO_OUT|>"]
    target_positions = is_audio_T.nonzero()[-target_KP.shape[1] :, 0]
    audio_logits_PC = model.audio_lm_head(hidden_TD[target_positions])
    return {
        "text_logits": model.text_lm_head(hidden_TD),
        "audio_logits": audio_logits_PC.reshape(target_KP.shape[1], NUM_CODEBOOKS, -1),
    }


def write_expected(folder: Path, *, seed: int, run) -> None:
    write_tokenizer(folder)
    conversation = draw_conversation(seed)
    named = dict(zip(("ids_T", "reference_KP", "target_KP"), conversation, strict=True))
    logits = {name: value.contiguous() for name, value in run(*conversation).items()}
    expected = folder.parent / f"{folder.name}_expected.safetensors"
    save_file({**named, **logits}, expected)
    for path in (*folder.iterdir(), expected):
        path.chmod(0o644)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("layout", choices=("boson", "native"))
    layout = parser.parse_args().layout
    (FOLDER / layout).mkdir(parents=True, exist_ok=True)
    {"boson": write_boson, "native": write_native}[layout](FOLDER / layout)
