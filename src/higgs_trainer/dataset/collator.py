"""Examples -> a packed or a padded batch, model inputs and targets side by side.

Packed: one row, example behind example, position ids that start again at each and no attention mask: no position is
wasted, and attention never crosses from one to the next (``model/attention.py``).

Padded: padding stands at the right. Attention is causal, so nothing real ever sees it and no attention mask is needed.
(Left padding, the processor's default, would train a pad position to predict the first token.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from higgs_trainer.dataset.examples import Example
from higgs_trainer.tensors import IGNORED, check_batch

Item = Example | Sequence[Example]  # of a dataset: an example, or a group of them


@dataclass(frozen=True)
class PackingCollator:
    """Puts examples one behind another in a single row."""

    num_codebooks: int

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        """Items -> ``input_ids``, ``position_ids``, ``audio_input_ids``, ``audio_input_ids_mask``, ``logits_to_keep``
        (model inputs), ``labels``, ``audio_labels`` (targets), ``utterance_ids``, ``durations_seconds``, ``rewards``,
        ``num_tokens`` (metadata)."""
        examples = _flatten(items)
        columns_PK = torch.cat([example.columns_PK for example in examples])
        batch: dict[str, Any] = {
            "input_ids": torch.cat([example.input_ids for example in examples])[None],
            "position_ids": torch.cat([torch.arange(len(example.input_ids)) for example in examples])[None],
            "audio_input_ids": columns_PK[None],
            "audio_input_ids_mask": torch.ones(1, len(columns_PK), dtype=torch.bool),
            "logits_to_keep": torch.cat([example.keep_T for example in examples])[None],
            "labels": torch.cat([example.labels for example in examples])[None],
            "audio_labels": torch.cat([example.targets_PK for example in examples])[None],
        }
        check_batch(batch, num_codebooks=self.num_codebooks)
        return batch | _metadata(examples)


@dataclass(frozen=True)
class PaddingCollator:
    """Pads examples to the longest of the batch."""

    pad_token_id: int
    end_id: int
    num_codebooks: int

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        """Items -> as `PackingCollator`, without ``position_ids``."""
        examples = _flatten(items)
        columns_P = torch.tensor([len(example.columns_PK) for example in examples])
        batch: dict[str, Any] = {
            "input_ids": _pad([example.input_ids for example in examples], self.pad_token_id),
            "audio_input_ids": _pad([example.columns_PK for example in examples], self.end_id),
            "audio_input_ids_mask": torch.arange(int(columns_P.max()))[None, :] < columns_P[:, None],
            "logits_to_keep": _pad([example.keep_T for example in examples], False),
            "labels": _pad([example.labels for example in examples], IGNORED),
            "audio_labels": _pad([example.targets_PK for example in examples], IGNORED),
        }
        check_batch(batch, num_codebooks=self.num_codebooks)
        return batch | _metadata(examples)


def _flatten(items: Sequence[Item]) -> list[Example]:
    return [example for item in items for example in ([item] if isinstance(item, Example) else item)]


def _metadata(examples: Sequence[Example]) -> dict[str, Any]:
    return {
        "utterance_ids": [example.utterance_id for example in examples],
        "durations_seconds": [example.duration_seconds for example in examples],
        "rewards": [example.reward for example in examples],
        "num_tokens": [len(example.input_ids) for example in examples],
    }


def _pad(tensors: list[Tensor], value: int | bool) -> Tensor:
    return pad_sequence(tensors, batch_first=True, padding_value=value)
