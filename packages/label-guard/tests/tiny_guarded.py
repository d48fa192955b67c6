"""Tiny random models, batches and trainers for the guard's tests. They run under transformers 4.46 and 5."""

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BatchEncoding,
    BatchFeature,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    Trainer,
    TrainingArguments,
)
from transformers.modeling_outputs import CausalLMOutput

from label_guard import Contract, LabelGuardMixin

VOCABULARY, HIDDEN, LENGTH = 37, 12, 7


def gpt2_config() -> GPT2Config:
    return GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=HIDDEN, n_layer=2, n_head=3, bos_token_id=0, eos_token_id=1,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip


class StrictLM(GPT2LMHeadModel):
    """A model that takes neither ``labels`` nor ``**kwargs``, and returns logits and no loss."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutput:
        hidden = self.transformer(input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds)[0]
        return CausalLMOutput(logits=self.lm_head(hidden))


class IgnoringLM(StrictLM):
    """The reference for a run without a leak: it takes ``labels`` and ignores them."""

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, labels: Any = None
    ) -> CausalLMOutput:
        return super().forward(input_ids, attention_mask)


class SpeechModel(nn.Module):
    """A model whose second positional parameter is ``labels``, as in older models of transformers."""

    def forward(self, speech: Tensor, labels: Tensor | None = None, rate: int = 1) -> tuple[Any, ...]:
        return speech, labels, rate


SPEECH = Contract("SpeechModel", inputs=frozenset({"speech", "rate"}), targets=frozenset({"labels"}))


class KwargsWrapper(nn.Module):
    """A module around one model, as people write it: it passes on whatever it is given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config = getattr(model, "config", None)

    def forward(self, **kwargs: Any) -> Any:
        return self.model(**kwargs)

    def prepare_inputs_for_generation(self, *_: Any, **__: Any) -> None:
        """Do nothing; PEFT's task classes expect the method."""


def make_model(kind: type[GPT2LMHeadModel] = StrictLM) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return kind(gpt2_config())


def next_token_loss(outputs: Any, labels: Tensor | None, num_items_in_batch: Any = None) -> Tensor:
    """A ``compute_loss_func``: the mean over the tokens of the batch, or of the whole step if they are counted."""
    if labels is None:
        raise ValueError("the loss got no labels")
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    losses = nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )
    count = (labels[:, 1:] != -100).sum() if num_items_in_batch is None else num_items_in_batch
    return losses / count


class RemoteCausalLM(nn.Module):
    """A model as hub repositories define it: ``self.model``, a head, and ``**kwargs`` that it passes on."""

    def __init__(self) -> None:
        super().__init__()
        self.model = GPT2Model(gpt2_config())
        self.lm_head = nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
        kwargs.pop("num_items_in_batch", None)
        logits = self.lm_head(self.model(input_ids, **kwargs)[0])
        loss = None if labels is None else next_token_loss((logits,), labels)
        return {"loss": loss, "logits": logits}


def make_rows(count: int = 8) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, VOCABULARY, (count, LENGTH), generator=generator).tolist()
    return [{"input_ids": row, "attention_mask": [1] * LENGTH} for row in ids]


def collate_plain(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}


def collate_with_labels(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    batch = collate_plain(rows)
    return batch | {"labels": batch["input_ids"].masked_fill(batch["input_ids"] % 5 == 0, -100)}


@dataclass
class DataclassBatch:
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


BATCH_TYPES: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "a dict": dict,
    "a UserDict": UserDict,
    "a BatchEncoding": BatchEncoding,
    "a BatchFeature": BatchFeature,
    "a dataclass": lambda batch: DataclassBatch(**batch),
    "an attribute object": lambda batch: SimpleNamespace(**batch),
    "a nested dict": lambda batch: {"loss": {"labels": batch.pop("labels")}, "inputs": batch},
}


def add_labels(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """A forward pre-hook that adds labels to the call."""
    return args, {**kwargs, "labels": kwargs["input_ids"]}


class GuardedTrainer(LabelGuardMixin, Trainer):
    """All that a user of Trainer writes: an observer."""


class TargetLossTrainer(LabelGuardMixin, Trainer):
    """An owner, whose loss reads the targets and the metadata."""

    def compute_guarded_loss(
        self, model: nn.Module, model_inputs: Any, targets: Any, metadata: Any, num_items_in_batch: Any
    ) -> tuple[Tensor, Any]:
        outputs = model(**model_inputs)
        self.metadata_seen = metadata
        return next_token_loss(outputs, targets["labels"], num_items_in_batch), outputs


def make_trainer(
    folder: Path, model: nn.Module, *, kind: type[Trainer] = GuardedTrainer, **options: Any
) -> Any:
    """Make a trainer of two steps of two rows. Options of ``TrainingArguments`` go there, others to the trainer."""
    names = set(TrainingArguments.__dataclass_fields__)
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 4,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 3,
    }
    arguments |= {key: options.pop(key) for key in list(options) if key in names}
    guard_layers = options.pop("guard_layers", None)
    options = {
        "data_collator": collate_with_labels,
        "compute_loss_func": next_token_loss,
        "train_dataset": make_rows(),
        "eval_dataset": make_rows(4),
    } | options
    trainer = kind(model=model, args=TrainingArguments(**arguments), **options)
    if guard_layers is not None:
        trainer.guard_layers = frozenset(guard_layers)
    return trainer


def losses_of(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
