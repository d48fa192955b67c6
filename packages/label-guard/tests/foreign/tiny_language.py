"""A tokenizer, tiny random models and datasets for trainers that other people wrote. Nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    BertPreTrainedModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

WORDS = "the a old young cat dog bird sees hears likes one two three and not".split()
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
CHAT = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate([*SPECIAL.values(), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT, **SPECIAL)


def make_llama(kind: type[LlamaForCausalLM] = LlamaForCausalLM, **options: Any) -> Any:
    """Make a Llama of two layers. It drops out, so that a change of the random state changes its losses."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS), hidden_size=12, intermediate_size=20, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64, attention_dropout=0.1,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, **options,
    )  # fmt: skip
    return kind(config)


def make_classifier() -> LlamaForSequenceClassification:
    return make_llama(LlamaForSequenceClassification, num_labels=1)


def make_bert(kind: type[BertPreTrainedModel] = BertModel, **options: Any) -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS), hidden_size=12, intermediate_size=20, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64, pad_token_id=0,
        **options,
    )  # fmt: skip
    return kind(config)


def make_t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(SPECIAL) + len(WORDS), d_model=12, d_kv=6, d_ff=20, num_layers=1, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def make_adapter(task_type: str | None) -> LoraConfig:
    return LoraConfig(
        task_type=task_type,
        r=3,
        lora_dropout=0.1,
        target_modules=["q_proj", "v_proj"],
        init_lora_weights=False,
    )


def sentence(number: int, length: int) -> str:
    return " ".join(WORDS[(number * 7 + 5 * place + place * place) % len(WORDS)] for place in range(length))


def make_columns(*names: str, num_rows: int = 8) -> Dataset:
    """Make rows of text. Rows differ in length, so that batches are padded."""
    rows = [
        {name: sentence(3 * row + index, 3 + (row + 2 * index) % 4) for index, name in enumerate(names)}
        for row in range(num_rows)
    ]
    return Dataset.from_list(rows)
