"""Load the linear layers of a frozen model in 4 bits, by bitsandbytes, to train an adapter on them (QLoRA)."""

import importlib.util

import torch
from transformers import BitsAndBytesConfig

from higgs_trainer.errors import RecipeError

HEADS = ("audio_lm_head", "text_lm_head")
"""Linear layers that keep their precision, because their outputs are the logits."""


def check_quantization(quantization: str | None) -> None:
    """Raise RecipeError if bitsandbytes is needed but not installed."""
    if quantization is not None and importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeError(
            f"model.quantization: {quantization} needs bitsandbytes, which is not installed. Run pip install "
            "'higgs-trainer[quantization]', or leave the field out."
        )


def build_quantization(quantization: str | None, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """Build the configuration of NF4 with double quantization, as in the QLoRA paper (Dettmers et al. 2023).

    Args:
        quantization: "nf4", or None to load the weights as they are.
        dtype: of the products, for which weights are dequantized.
    """
    if quantization is None:
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(HEADS),
    )
