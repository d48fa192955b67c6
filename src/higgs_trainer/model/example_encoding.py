"""Encode a prepared row as an example of one checkpoint: tokenize its prompt, delay its codes, build its targets."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from higgs_trainer.dataset.context import read_context
from higgs_trainer.dataset.examples import Example, ExampleDataset, Rows
from higgs_trainer.model.families import SequenceFormat, StreamIds
from higgs_trainer.tensors import IGNORED


def build_examples(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, ids: StreamIds, sequence: SequenceFormat
) -> ExampleDataset:
    """Build the dataset of the examples of ``rows``, each encoded when it is first read."""
    return ExampleDataset(rows, partial(encode_example, tokenizer=tokenizer, ids=ids, sequence=sequence))


def encode_example(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, ids: StreamIds, sequence: SequenceFormat
) -> Example:
    """Encode a prepared row as an example. Only the columns of the target clip are supervised.

    Raises:
        ValueError: the numbers of placeholders and columns differ, which would shift every target.
    """
    context = read_context(row)
    target_FK = row["codes_FK"]
    clips_FK = [*(clip.codes_FK for clip in context.clips), target_FK]
    columns = [sequence.apply_delay(clip_FK, begin_id=ids.begin, end_id=ids.end) for clip_FK in clips_FK]
    targets = [torch.full_like(clip_PK, IGNORED) for clip_PK in columns[:-1]]
    targets.append(sequence.build_targets(target_FK, end_id=ids.end))

    input_ids = sequence.encode_conversation(
        tokenizer, row["text"], context, len(target_FK), num_codebooks=ids.num_codebooks
    )
    targets_PK = torch.cat(targets)
    is_audio_T = (input_ids == ids.audio_token) | (input_ids == ids.delay_token)
    if int(is_audio_T.sum()) != len(targets_PK):
        raise ValueError(
            f"{row['utterance_id']}: {int(is_audio_T.sum())} audio placeholders for {len(targets_PK)} columns. "
            "Use the chat template and the tokenizer of this model."
        )
    return Example(
        input_ids=input_ids,
        columns_PK=torch.cat(columns),
        targets_PK=targets_PK,
        is_audio_T=is_audio_T,
        keep_T=_find_positions_before_targets(is_audio_T, targets_PK),
        utterance_id=row["utterance_id"],
        reward=row["reward"],
    )


def _find_positions_before_targets(is_audio_T: Tensor, targets_PK: Tensor) -> Tensor:
    """Return True (T,) where the column of the *next* position is supervised: position p predicts position p + 1."""
    supervised_T = torch.zeros_like(is_audio_T)
    supervised_T[is_audio_T] = (targets_PK != IGNORED).any(dim=1)
    return supervised_T.roll(-1).index_fill(0, torch.tensor([len(supervised_T) - 1]), False)
