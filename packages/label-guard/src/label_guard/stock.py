"""What the stock Trainer does with labels, for a batch whose labels have been taken out: its losses and its outputs."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from label_guard.base import class_of

# The names under which transformers' own collators and losses know one and the same thing.
LABELS = ("labels", "label_ids", "label")


def compute_stock_loss(
    trainer: Any, base: nn.Module, outputs: Any, labels: Any, num_items_in_batch: Any
) -> torch.Tensor:
    """``compute_loss_func``'s loss, else label smoothing's, else the one that the model returned.

    Raises ``ValueError`` where there is none of them.
    """
    if trainer.compute_loss_func is not None:
        loss = trainer.compute_loss_func(outputs, labels, num_items_in_batch=num_items_in_batch)
    elif trainer.label_smoother is not None and labels is not None:
        options = {"num_items_in_batch": num_items_in_batch, "shift_labels": _predicts_next_token(base)}
        takes = inspect.signature(trainer.label_smoother.__call__).parameters
        loss = trainer.label_smoother(
            outputs, labels, **{key: options[key] for key in options if key in takes}
        )
    else:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs[0]
        if not isinstance(loss, torch.Tensor) or loss.dim() > 1:
            raise ValueError(
                f"there is no loss: {class_of(base).__name__} returned none, and neither compute_loss_func nor "
                "label_smoothing_factor is set. Set one, or override compute_guarded_loss"
            )
    return loss


def _predicts_next_token(base: nn.Module) -> bool:
    """Whether Trainer shifts the labels of a model before it smooths them."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return class_of(base).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def find_labels(targets: dict[str, Any]) -> Any:
    """The labels for Trainer's own losses, under whichever of their three names; None where there are none."""
    return next((targets[key] for key in LABELS if targets.get(key) is not None), None)


def with_labels(batch: Any) -> Any:
    """A batch that the stock Trainer can count: its labels under the name that it looks for."""
    labels = None if "labels" in batch else find_labels(batch)
    return batch if labels is None else {**batch, "labels": labels}


def logits_of(outputs: Any, loss: torch.Tensor | None, ignore_keys: list[str]) -> Any:
    """The outputs without the loss, as Trainer gathers them."""
    if isinstance(outputs, dict):
        kept = tuple(value for key, value in outputs.items() if key not in [*ignore_keys, "loss"])
    elif isinstance(outputs, torch.Tensor):
        kept = (outputs,)
    else:
        kept = tuple(outputs[1:] if loss is not None and outputs[0] is loss else outputs)
    kept = detach(kept)
    return kept[0] if len(kept) == 1 else kept


def detach(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(detach(item) for item in value)
    if isinstance(value, dict):
        return {key: detach(item) for key, item in value.items()}
    return value.detach() if isinstance(value, torch.Tensor) else value
