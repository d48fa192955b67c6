"""The modules of Higgs Audio v2: a Llama whose layers have a second FFN, and second norms, for audio.

The model classes of transformers and of Boson give the parts of a layer the same names.
"""

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
# The modules of the text FFN and of the audio FFN have the same names.
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
AUDIO_FEED_FORWARD = tuple(f"audio_mlp.{name}" for name in FEED_FORWARD)

LORA_PRESETS = {
    "attention": ATTENTION,
    "attention+audio_ffn": (*ATTENTION, *AUDIO_FEED_FORWARD),
    "all_linear": (*ATTENTION, *FEED_FORWARD),
}

MODULE_KINDS = {
    "text_embeddings": frozenset({"embed_tokens"}),
    "audio_embeddings": frozenset({"embed_audio_tokens", "audio_codebook_embeddings"}),
    "attention": frozenset({"self_attn"}),
    "text_ffn": frozenset({"mlp"}),
    "audio_ffn": frozenset({"audio_mlp"}),
    "norms": frozenset(
        {
            "norm",
            "input_layernorm",
            "post_attention_layernorm",
            "audio_input_layernorm",
            "audio_post_attention_layernorm",
        }
    ),
    "text_head": frozenset({"text_lm_head"}),
    "audio_head": frozenset({"audio_lm_head"}),
    "audio_tower": frozenset({"audio_tower", "audio_encoder_proj"}),
}
