"""The shape of a batch: how long its examples are, and how many of their positions are columns of audio."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from higgs_trainer.model.families import StreamIds

TYPICAL_TEXT_TOKENS = 46
TYPICAL_COLUMNS = 158
"""A sentence of six seconds: 150 frames and the delay of 8 codebooks."""


@dataclass(frozen=True)
class BatchShape:
    """Examples of equal length in one row (a pack) or in a row each (a padded batch).

    Attributes:
        tokens: the number of positions in the batch.
        text_tokens, columns: the length of an example: its text, and its columns of audio.
        supervised: how many of the columns are supervised. The others are those of references.
        is_packed: whether all examples are in one row.
    """

    tokens: int
    text_tokens: int = TYPICAL_TEXT_TOKENS
    columns: int = TYPICAL_COLUMNS
    supervised: int = TYPICAL_COLUMNS
    is_packed: bool = True

    @property
    def example_tokens(self) -> int:
        """The number of positions in an example."""
        return self.text_tokens + self.columns

    def resize(self, tokens: int) -> "BatchShape":
        """Return the shape of a batch of another size with examples of the same length."""
        return replace(self, tokens=tokens)

    def list_lengths(self) -> list[int]:
        """Return the lengths of the examples. The last one is shorter if the batch is no multiple of an example."""
        full, rest = divmod(self.tokens, self.example_tokens)
        return [self.example_tokens] * full + ([rest] if rest > 1 else [])


def build_batch(shape: BatchShape, ids: StreamIds) -> tuple[dict[str, Any], torch.Tensor]:
    """Build the model inputs of a batch and its targets (N, K), which are in its rows and columns as real ones are."""
    rows = [_build_row(length, shape, ids) for length in shape.list_lengths()]
    inputs: dict[str, Any]
    if shape.is_packed:
        inputs = {name: torch.cat([row[name] for row in rows])[None] for name in rows[0]}
    else:
        inputs = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        del inputs["position_ids"]
    supervised = int(inputs["logits_to_keep"].sum())
    return inputs, torch.zeros(supervised, ids.num_codebooks, dtype=torch.long)


def _build_row(length: int, shape: BatchShape, ids: StreamIds) -> dict[str, torch.Tensor]:
    """Build the inputs of an example: text, columns, and one token after them."""
    columns = max(1, min(length - 1, round(length * shape.columns / shape.example_tokens)))
    supervised = max(1, round(columns * shape.supervised / max(1, shape.columns)))
    input_ids = torch.zeros(length, dtype=torch.long)
    input_ids[length - columns :] = ids.audio_token
    kept = torch.zeros(length, dtype=torch.bool)
    kept[length - supervised - 1 : -1] = True
    return {
        "input_ids": input_ids,
        "position_ids": torch.arange(length),
        "audio_input_ids": torch.zeros(columns, ids.num_codebooks, dtype=torch.long),
        "audio_input_ids_mask": torch.ones(columns, dtype=torch.bool),
        "logits_to_keep": kept,
    }


def measure_examples(lengths: Sequence[tuple[int, int, int]], shape: BatchShape) -> BatchShape:
    """Return the shape with the mean example of a dataset.

    Args:
        lengths: text tokens, columns and supervised columns of each example.
    """
    text, columns, supervised = (round(sum(values) / len(lengths)) for values in zip(*lengths, strict=True))
    return replace(shape, text_tokens=text, columns=columns, supervised=supervised)
