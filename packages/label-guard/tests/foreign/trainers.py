"""Trainers that other people wrote, each with a tiny model and a dataset in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import get_peft_model
from sentence_transformers import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    losses,
)
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tiny_language import (
    make_adapter,
    make_bert,
    make_classifier,
    make_columns,
    make_llama,
    make_t5,
    make_tokenizer,
)
from transformers import (
    BertForSequenceClassification,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

COMMON = {
    "max_steps": 3,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "learning_rate": 0.05,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "report_to": [],
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "seed": 3,
    "bf16": False,
    "gradient_checkpointing": False,
}
Make = Callable[[type[Trainer], Path, bool], Any]


@dataclass(frozen=True)
class Case:
    """A trainer of a library.

    Attributes:
        name: its name in the table.
        kind: its class.
        make: builds a trainer of a subclass of this class, with or without LoRA.
        loras: whether it is run without LoRA, with LoRA, or both.
        evaluates: whether it can evaluate.
    """

    name: str
    kind: type[Trainer]
    make: Make
    loras: tuple[bool, ...] = (False, True)
    evaluates: bool = True


def make_trl(
    config: type[TrainingArguments],
    columns: Callable[[], Dataset],
    make_model: Callable[[], Any] = make_llama,
    task_type: str = "CAUSAL_LM",
    options: dict[str, Any] | None = None,
    **arguments: Any,
) -> Make:
    """Return a function that builds a trainer of TRL."""

    def make(kind: type[Trainer], folder: Path, lora: bool) -> Any:
        extra = {"peft_config": make_adapter(task_type)} if lora else {}
        # Some trainers load their reference model from the same folder again.
        model = make_model()
        model.save_pretrained(folder)
        return kind(
            model=type(model).from_pretrained(folder),
            args=config(output_dir=str(folder), **COMMON | arguments),
            train_dataset=columns(),
            eval_dataset=columns(),
            processing_class=make_tokenizer(),
            **extra,
            **options or {},
        )

    return make


def count_cats(completions: list[str], **_: Any) -> list[float]:
    """A reward that differs between completions of a random model."""
    return [float(len(set(completion.split()))) + completion.count("cat") for completion in completions]


def make_kto_rows() -> Dataset:
    rows = make_columns("prompt", "completion")
    return rows.add_column("label", [row % 3 != 0 for row in range(len(rows))])


def make_stock(kind: type[Trainer], folder: Path, lora: bool) -> Any:
    tokenizer = make_tokenizer()
    rows = make_columns("text").map(lambda row: tokenizer(row["text"]), remove_columns="text")
    model = make_llama()
    return kind(
        model=get_peft_model(model, make_adapter("CAUSAL_LM")) if lora else model,
        args=TrainingArguments(output_dir=str(folder), gradient_accumulation_steps=2, **COMMON),
        train_dataset=rows.map(lambda row: {"labels": row["input_ids"]}),
        eval_dataset=rows.map(lambda row: {"labels": row["input_ids"]}),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )


def make_seq2seq(kind: type[Trainer], folder: Path, lora: bool) -> Any:
    tokenizer = make_tokenizer()

    def encode(row: dict[str, str]) -> dict[str, Any]:
        return {**tokenizer(row["text"]), "labels": tokenizer(row["target"])["input_ids"]}

    rows = make_columns("text", "target").map(encode, remove_columns=["text", "target"])
    model = make_t5()
    if lora:
        adapter = make_adapter("SEQ_2_SEQ_LM")
        adapter.target_modules = {"q", "v"}
        model = get_peft_model(model, adapter)
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(folder), predict_with_generate=True, generation_max_length=6, **COMMON
    )
    return kind(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
    )


def make_sentence_transformer(kind: type[Trainer], folder: Path, lora: bool) -> Any:
    make_tokenizer().save_pretrained(folder)
    make_bert().save_pretrained(folder)
    module = Transformer(str(folder), processor_kwargs={"local_files_only": True})
    if lora:
        adapter = make_adapter("FEATURE_EXTRACTION")
        adapter.target_modules = {"query", "value"}
        module.model = get_peft_model(module.model, adapter)
    model = SentenceTransformer(modules=[module, Pooling(12)], device="cpu")
    return kind(
        model=model,
        args=SentenceTransformerTrainingArguments(output_dir=str(folder), **COMMON),
        train_dataset=make_columns("anchor", "positive"),
        eval_dataset=make_columns("anchor", "positive"),
        loss=losses.MultipleNegativesRankingLoss(model),
    )


def make_cross_encoder(kind: type[Trainer], folder: Path, lora: bool) -> Any:
    make_tokenizer().save_pretrained(folder)
    make_bert(BertForSequenceClassification, num_labels=1).save_pretrained(folder)
    model = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    if lora:
        adapter = make_adapter("SEQ_CLS")
        adapter.target_modules = {"query", "value"}
        model[0].model = get_peft_model(model[0].model, adapter)
    rows = make_columns("question", "answer")
    rows = rows.add_column("label", [row % 3 / 2 for row in range(len(rows))])
    return kind(
        model=model,
        args=CrossEncoderTrainingArguments(output_dir=str(folder), **COMMON),
        train_dataset=rows,
        eval_dataset=rows,
        loss=BinaryCrossEntropyLoss(model),
    )


PREFERENCES = functools.partial(make_columns, "prompt", "chosen", "rejected")
ROLLOUT = {"num_generations": 2, "max_completion_length": 5, "temperature": 0.9}
CASES = [
    Case("transformers Trainer", Trainer, make_stock),
    Case("transformers Seq2SeqTrainer", Seq2SeqTrainer, make_seq2seq),
    Case("TRL SFTTrainer", SFTTrainer, make_trl(SFTConfig, functools.partial(make_columns, "text"))),
    Case(
        "TRL SFTTrainer, packing",
        SFTTrainer,
        make_trl(
            SFTConfig, functools.partial(make_columns, "prompt", "completion"), packing=True, max_length=16
        ),
    ),
    Case("TRL DPOTrainer", DPOTrainer, make_trl(DPOConfig, PREFERENCES)),
    Case("TRL KTOTrainer", KTOTrainer, make_trl(KTOConfig, make_kto_rows)),
    Case("TRL RewardTrainer", RewardTrainer, make_trl(RewardConfig, PREFERENCES, make_classifier, "SEQ_CLS")),
    Case(
        "TRL GRPOTrainer",
        GRPOTrainer,
        make_trl(
            GRPOConfig,
            functools.partial(make_columns, "prompt"),
            options={"reward_funcs": count_cats},
            **ROLLOUT,
        ),
    ),
    Case(
        "TRL RLOOTrainer",
        RLOOTrainer,
        make_trl(
            RLOOConfig,
            functools.partial(make_columns, "prompt"),
            options={"reward_funcs": count_cats},
            **ROLLOUT,
        ),
    ),
    Case("TRL CPOTrainer", CPOTrainer, make_trl(CPOConfig, PREFERENCES)),
    Case("TRL ORPOTrainer", ORPOTrainer, make_trl(ORPOConfig, PREFERENCES)),
    Case("SentenceTransformerTrainer", SentenceTransformerTrainer, make_sentence_transformer),
    Case("CrossEncoderTrainer", CrossEncoderTrainer, make_cross_encoder),
]
