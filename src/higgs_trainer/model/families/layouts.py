"""The two layouts of a Higgs Audio v2 checkpoint: Boson's (``higgs_audio``) and transformers' (``higgs_audio_v2``).

The weights have other names and the sizes are in other fields. No weight is permuted: both layouts keep Llama's
attention as transformers does, and in the audio embedding and the audio head of both, the codes of codebook k begin at
row ``k * (codes + 2)``. Boson counts the codes without the two stream tokens, transformers with them.

Sources: ``HiggsAudioModel`` of boson_multimodal 0.1.1, ``HiggsAudioV2ForConditionalGeneration`` of transformers 5.23.
"""

from collections.abc import Callable, Mapping
from typing import Any

from higgs_trainer.errors import CheckpointError

BOSON_MODEL_TYPE, NATIVE_MODEL_TYPE = "higgs_audio", "higgs_audio_v2"
Config = Mapping[str, Any]
Sizes = tuple[int, ...]
TokenId = Callable[[str], int]

NATIVE_NAMES = {
    "embed_tokens.": "model.embed_tokens.",
    "layers.": "model.layers.",
    "norm.": "model.norm.",
    "audio_codebook_embeddings.": "model.embed_audio_tokens.embed_audio_tokens.",
    "audio_decoder_proj.audio_lm_head.": "audio_lm_head.",
    "audio_decoder_proj.text_lm_head.": "text_lm_head.",
}
"""The beginning of a weight's name in Boson's layout -> in transformers'. The rest of the name is the same."""

SPLIT = (("embedding_frozen.", "embedding_trainable."), ("linear_frozen.", "linear_trainable."))
"""Ends of names: Boson's training may have split a matrix between two rows, into an upper and a lower part."""

COMPUTED = ("rotary_emb.inv_freq", "audio_codebook_weights")
"""Ends of names of tensors in older files that are no weights: frequencies, which follow from the configuration, and
the weights of Boson's loss."""

TEXT_FIELDS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "bos_token_id": 1,
}
"""Fields of Boson's ``text_config`` that are top-level fields in transformers' layout, with the defaults of
``LlamaConfig``."""

AUDIO_FIELDS = {
    "audio_num_codebooks": ("num_codebooks", 12),
    "audio_out_token_idx": ("audio_token_id", 128016),
    "audio_out_bos_token_id": ("audio_bos_token_id", 128013),
    "audio_stream_bos_id": ("audio_stream_bos_id", 1024),
    "audio_stream_eos_id": ("audio_stream_eos_id", 1025),
    "pad_token_id": ("pad_token_id", 128001),
}
"""Boson's field -> transformers' field, and Boson's default."""

NATIVE_FIELDS = ("codebook_size", "eos_token_id", "rope_parameters")
"""Fields of transformers' layout that are in none of the tables above."""

SWITCHES = {
    "audio_embed_avg": (False, False),
    "audio_decoder_proj_num_layers": (0, 0),
    "encode_audio_in_tokens": (True, False),
    "skip_audio_tower": (True, False),
    "use_audio_out_embed_projector": (False, False),
    "use_audio_out_self_attention": (False, False),
    "use_delay_pattern": (True, False),
    "use_rq_transformer": (False, False),
}
"""Boson's switch -> the value with which transformers' class computes the same, and Boson's default."""


def build_native_config(boson: Config, token_id: TokenId) -> dict[str, Any]:
    """Build ``config.json`` in transformers' layout from the one in Boson's.

    Raises:
        CheckpointError: a switch turns on a module that transformers' class does not have.
    """
    text = {**TEXT_FIELDS, **boson.get("text_config", {})}
    _check_convertible(boson, text["num_hidden_layers"])
    rope = dict(text.get("rope_scaling") or {"rope_type": "default"})
    # "type" is the older name of "rope_type".
    rope["rope_type"] = rope.pop("type", None) or rope["rope_type"]
    config = {name: text[name] for name in TEXT_FIELDS}
    config["num_key_value_heads"] = config["num_key_value_heads"] or config["num_attention_heads"]
    config["head_dim"] = config["head_dim"] or config["hidden_size"] // config["num_attention_heads"]
    config |= {native: boson.get(field, default) for field, (native, default) in AUDIO_FIELDS.items()}
    return config | {
        "architectures": ["HiggsAudioV2ForConditionalGeneration"],
        "model_type": NATIVE_MODEL_TYPE,
        "rope_parameters": {**rope, "rope_theta": text.get("rope_theta", 10_000.0)},
        "codebook_size": boson.get("audio_codebook_size", 1024) + 2,
        "audio_delay_token_id": token_id("<|reserved_special_token_6|>"),
        "eos_token_id": token_id("<|eot_id|>"),
        "tie_word_embeddings": False,
    }


def build_boson_config(native: Config, token_id: TokenId) -> dict[str, Any]:
    """Build ``config.json`` in Boson's layout from the one in transformers'.

    Raises:
        CheckpointError: a field is missing.
    """
    needed = [*TEXT_FIELDS, *(name for name, _ in AUDIO_FIELDS.values()), *NATIVE_FIELDS]
    if missing := sorted(set(needed) - native.keys()):
        raise CheckpointError(
            f"config.json lacks {', '.join(missing)}. Save the model again with transformers 5"
        )
    rope = dict(native["rope_parameters"])
    text = {name: native[name] for name in TEXT_FIELDS}
    text |= {"model_type": "llama", "eos_token_id": native["eos_token_id"], "tie_word_embeddings": False}
    text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config = {field: native[name] for field, (name, _) in AUDIO_FIELDS.items()}
    config |= {switch: value for switch, (value, _) in SWITCHES.items()}
    return config | {
        "architectures": ["HiggsAudioModel"],
        "model_type": BOSON_MODEL_TYPE,
        "text_config": text,
        "audio_adapter_type": "dual_ffn",
        "audio_dual_ffn_layers": list(range(native["num_hidden_layers"])),
        "audio_ffn_hidden_size": native["hidden_size"],
        "audio_ffn_intermediate_size": native["intermediate_size"],
        "audio_codebook_size": native["codebook_size"] - 2,
        "audio_in_token_idx": token_id("<|AUDIO|>"),
        "audio_eos_token_id": token_id("<|audio_eos|>"),
        "encode_whisper_embed": False,
        "tie_word_embeddings": False,
    }


def _check_convertible(boson: Config, num_layers: int) -> None:
    wrong = [
        f"{switch} is {boson.get(switch, default)!r}, not {value!r}"
        for switch, (value, default) in SWITCHES.items()
        if boson.get(switch, default) != value
    ]
    adapter_type = boson.get("audio_adapter_type", "stack")
    if not str(adapter_type).startswith("dual_ffn"):
        wrong.append(f"audio_adapter_type is {adapter_type!r}, not 'dual_ffn'")
    elif sorted(boson.get("audio_dual_ffn_layers") or ()) != list(range(num_layers)):
        wrong.append(f"audio_dual_ffn_layers are not all {num_layers} layers")
    if wrong:
        raise CheckpointError(
            f"config.json: transformers' Higgs Audio v2 has no such model: {'; '.join(wrong)}"
        )


def list_native_weights(config: Config) -> dict[str, Sizes]:
    """List the weights of transformers' class, with the head over text: name -> shape."""
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    query, key = heads * config["head_dim"], kv_heads * config["head_dim"]
    codes = config["num_codebooks"] * config["codebook_size"]
    attention = {
        "q_proj": (query, hidden),
        "k_proj": (key, hidden),
        "v_proj": (key, hidden),
        "o_proj": (hidden, query),
    }
    ffn = {
        "gate_proj": (intermediate, hidden),
        "up_proj": (intermediate, hidden),
        "down_proj": (hidden, intermediate),
    }
    layer: dict[str, Sizes] = {}
    for module, matrices, bias in (
        ("self_attn", attention, config["attention_bias"]),
        ("mlp", ffn, config["mlp_bias"]),
        ("audio_mlp", ffn, config["mlp_bias"]),
    ):
        for name, shape in matrices.items():
            layer[f"{module}.{name}.weight"] = shape
            if bias:
                layer[f"{module}.{name}.bias"] = shape[:1]
    for norm in ("input_layernorm", "post_attention_layernorm"):
        layer |= {f"{norm}.weight": (hidden,), f"audio_{norm}.weight": (hidden,)}
    return {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
        "model.embed_audio_tokens.embed_audio_tokens.weight": (codes, hidden),
        "audio_lm_head.weight": (codes, hidden),
        "text_lm_head.weight": (config["vocab_size"], hidden),
        **{
            f"model.layers.{i}.{name}": s
            for i in range(config["num_hidden_layers"])
            for name, s in layer.items()
        },
    }


def rename_to_boson(native_name: str) -> str:
    """Return the name in Boson's layout of a weight in transformers'."""
    for boson, native in NATIVE_NAMES.items():
        if native_name.startswith(native):
            return boson + native_name.removeprefix(native)
    raise KeyError(f"{native_name} is not a weight of transformers' Higgs Audio v2")
