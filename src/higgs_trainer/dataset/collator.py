"""Collate examples into a batch: model inputs, targets and metadata.

`PackingCollator` concatenates the examples into one row. Position ids start again at each example and there is no
attention mask: no position is padding, and attention stays within an example (``model/attention.py``).

`PaddingCollator` pads the examples on the right. Attention is causal, so no real position sees the padding and no
attention mask is needed. Padding on the left, the processor's default, would train a pad position to predict the first
token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from higgs_trainer.dataset.examples import Example
from higgs_trainer.dataset.layout import build_layout
from higgs_trainer.tensors import IGNORED, check_batch

Item = Example | Sequence[Example]
"""An item of a dataset: an example, or the group of examples that a plan puts together."""


@dataclass(frozen=True)
class PackingCollator:
    """Concatenate examples into a single row."""

    num_codebooks: int

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        """Return a batch of one row.

        Model inputs: ``input_ids``, ``position_ids``, ``logits_to_keep`` (1, T), ``audio_input_ids`` (1, P, K) and
        ``audio_input_ids_mask`` (1, P), and ``layout`` (`build_layout`). Target: ``audio_labels`` (1, P, K). Metadata,
        one entry per example:
        ``utterance_ids``, ``rewards`` and ``num_tokens``.
        """
        examples = _flatten(items)
        columns_PK = torch.cat([example.columns_PK for example in examples])
        batch: dict[str, Any] = {
            "input_ids": torch.cat([example.input_ids for example in examples])[None],
            "position_ids": torch.cat([torch.arange(len(example.input_ids)) for example in examples])[None],
            "audio_input_ids": columns_PK[None],
            "audio_input_ids_mask": torch.ones(1, len(columns_PK), dtype=torch.bool),
            "logits_to_keep": torch.cat([example.keep_T for example in examples])[None],
            "audio_labels": torch.cat([example.targets_PK for example in examples])[None],
        }
        check_batch(batch, num_codebooks=self.num_codebooks)
        lengths = [len(example.input_ids) for example in examples]
        is_audio_1T = torch.cat([example.is_audio_T for example in examples])[None]
        return _complete(batch, is_audio_1T, examples, lengths)


@dataclass(frozen=True)
class PaddingCollator:
    """Pad examples to the longest one in the batch."""

    pad_token_id: int
    end_id: int
    num_codebooks: int

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        """Return a batch of B rows, with the keys of `PackingCollator` except ``position_ids``."""
        examples = _flatten(items)
        columns_P = torch.tensor([len(example.columns_PK) for example in examples])
        batch: dict[str, Any] = {
            "input_ids": _pad([example.input_ids for example in examples], self.pad_token_id),
            "audio_input_ids": _pad([example.columns_PK for example in examples], self.end_id),
            "audio_input_ids_mask": torch.arange(int(columns_P.max()))[None, :] < columns_P[:, None],
            "logits_to_keep": _pad([example.keep_T for example in examples], False),
            "audio_labels": _pad([example.targets_PK for example in examples], IGNORED),
        }
        check_batch(batch, num_codebooks=self.num_codebooks)
        return _complete(batch, _pad([example.is_audio_T for example in examples], False), examples)


def _complete(
    batch: dict[str, Any],
    is_audio_BT: Tensor,
    examples: Sequence[Example],
    example_lengths: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Add the layout and the metadata."""
    layout = build_layout(
        is_audio_BT,
        batch["audio_input_ids_mask"],
        batch["logits_to_keep"],
        batch["audio_labels"],
        example_lengths,
    )
    return batch | {"layout": layout} | _list_metadata(examples)


def _flatten(items: Sequence[Item]) -> list[Example]:
    return [example for item in items for example in ([item] if isinstance(item, Example) else item)]


def _list_metadata(examples: Sequence[Example]) -> dict[str, Any]:
    return {
        "utterance_ids": [example.utterance_id for example in examples],
        "rewards": [example.reward for example in examples],
        "num_tokens": [len(example.input_ids) for example in examples],
    }


def _pad(tensors: list[Tensor], value: int | bool) -> Tensor:
    return pad_sequence(tensors, batch_first=True, padding_value=value)
