"""Compute the losses and outputs of the stock Trainer for a batch from which the labels have been removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from label_guard.base import find_class
from label_guard.compatibility import smooth_labels

if TYPE_CHECKING:
    from transformers import Trainer

# The names that transformers' own collators and losses use for the labels.
LABELS = ("labels", "label_ids", "label")


def compute_stock_loss(
    trainer: Trainer, base: nn.Module, outputs: Any, labels: Any, num_items_in_batch: Any
) -> torch.Tensor:
    """Compute the loss as Trainer does: by ``compute_loss_func``, else by label smoothing, else the model's own loss.

    Raises:
        ValueError: there is none of the three.
    """
    if trainer.compute_loss_func is not None:
        return trainer.compute_loss_func(outputs, labels, num_items_in_batch=num_items_in_batch)
    if trainer.label_smoother is not None and labels is not None:
        shift_labels = _predicts_next_token(base)
        return smooth_labels(
            trainer.label_smoother,
            outputs,
            labels,
            shift_labels=shift_labels,
            num_items_in_batch=num_items_in_batch,
        )
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs[0]
    if not isinstance(loss, torch.Tensor) or loss.dim() > 1:
        raise ValueError(
            f"there is no loss: {find_class(base).__name__} returned none, and neither compute_loss_func nor "
            "label_smoothing_factor is set. Set one, or override compute_guarded_loss"
        )
    return loss


def _predicts_next_token(base: nn.Module) -> bool:
    """Whether Trainer shifts this model's labels before it smooths them."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return find_class(base).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def find_labels(targets: dict[str, Any]) -> Any:
    """Return the labels for Trainer's own losses, under any of their three names (`LABELS`), or None."""
    return next((targets[key] for key in LABELS if targets.get(key) is not None), None)


def rename_labels(batch: Any) -> Any:
    """Return the batch with its labels under the name that Trainer counts."""
    labels = None if "labels" in batch else find_labels(batch)
    return batch if labels is None else {**batch, "labels": labels}


def select_logits(outputs: Any, loss: torch.Tensor | None, ignore_keys: list[str]) -> Any:
    """Return the detached outputs without the loss and the ignored keys, as Trainer gathers them."""
    if isinstance(outputs, dict):
        kept = tuple(value for key, value in outputs.items() if key not in [*ignore_keys, "loss"])
    elif isinstance(outputs, torch.Tensor):
        kept = (outputs,)
    else:
        kept = tuple(outputs[1:] if loss is not None and outputs[0] is loss else outputs)
    kept = detach(kept)
    return kept[0] if len(kept) == 1 else kept


def detach(value: Any) -> Any:
    """Detach every tensor in a nested structure of tuples, lists and dicts."""
    if isinstance(value, (tuple, list)):
        return type(value)(detach(item) for item in value)
    if isinstance(value, dict):
        return {key: detach(item) for key, item in value.items()}
    return value.detach() if isinstance(value, torch.Tensor) else value
