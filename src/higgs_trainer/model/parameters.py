"""The kinds of modules that a Higgs Audio model is made of: freezing by kind, and the table of what is trained."""

from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches

from torch import nn

from higgs_trainer.errors import RecipeError

KINDS = {
    "text_embeddings": {"embed_tokens"},
    "audio_embeddings": {"embed_audio_tokens", "audio_codebook_embeddings"},
    "attention": {"self_attn"},
    "text_ffn": {"mlp"},
    "audio_ffn": {"audio_mlp"},
    "norms": {
        "norm",
        "input_layernorm",
        "post_attention_layernorm",
        "audio_input_layernorm",
        "audio_post_attention_layernorm",
    },
    "text_head": {"text_lm_head"},
    "audio_head": {"audio_lm_head"},
    "audio_tower": {"audio_tower", "audio_encoder_proj"},
}
"""Kind -> names of its modules, in both families. A parameter is of a kind when one of these is in its path."""


def freeze(model: nn.Module, kinds: Sequence[str]) -> None:
    """Stop training every parameter of these kinds.

    Raises:
        RecipeError: a kind that there is not, or that this model has none of, or nothing is left to train.
    """
    present = [kind for kind in KINDS if _parameters_of(model, kind)]
    for kind in kinds:
        if kind not in present:
            near = get_close_matches(kind, present, n=3, cutoff=0.4) or present
            raise RecipeError(f"model.freeze: {kind!r} matches no parameter; near: {', '.join(near)}")
        for parameter in _parameters_of(model, kind):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise RecipeError(f"model.freeze: nothing is left to train; there are {', '.join(present)}")


def freeze_text_head(model: nn.Module) -> None:
    """Stop training the head over text. Without a loss of text it gets no gradient, for which DDP would wait."""
    for parameter in _parameters_of(model, "text_head"):
        parameter.requires_grad_(False)


def _parameters_of(model: nn.Module, kind: str) -> list[nn.Parameter]:
    return [
        parameter
        for name, parameter in model.named_parameters()
        if not KINDS[kind].isdisjoint(name.split("."))
    ]


def count_trainable(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Kind of module -> (trainable, all) parameters. The kind is the module's own name: ``q_proj``, ``audio_lm_head``;
    a layer's audio FFN and text FFN are told apart: ``audio_mlp.up_proj``."""
    trainable: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        kind = _module_of(name)
        total[kind] += parameter.numel()
        trainable[kind] += parameter.numel() * parameter.requires_grad
    return {kind: (trainable[kind], total[kind]) for kind in total}


def format_trainable(table: dict[str, tuple[int, int]]) -> str:
    """What `count_trainable` counted, one kind a line, with the share and the sum."""
    trained, total = (sum(counts) for counts in zip(*table.values(), strict=True))
    rows = [("parameters of", "trained", "all", "")]
    rows += [(kind, f"{some:,}", f"{all_:,}", f"{some / all_:.2%}") for kind, (some, all_) in table.items()]
    rows.append(("together", f"{trained:,}", f"{total:,}", f"{trained / total:.2%}"))
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join(
        "  ".join((row[0].ljust(first), *(cell.rjust(w) for cell, w in zip(row[1:], others, strict=True))))
        for row in rows
    )


def _module_of(parameter_name: str) -> str:
    parts = [part for part in parameter_name.split(".") if part not in PEFT_PARTS and not part.isdigit()]
    kind = parts[-2] if len(parts) > 1 else parts[0]
    parent = parts[-3] if len(parts) > 2 else ""
    return f"{parent}.{kind}" if parent.endswith("mlp") else kind


PEFT_PARTS = frozenset(
    {
        "base_layer",
        "lora_A",
        "lora_B",
        "lora_magnitude_vector",
        "default",
        "modules_to_save",
        "original_module",
    }
)
