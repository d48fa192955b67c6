"""Measure the examples of a recipe's prepared datasets: how long they are, and how many steps an epoch has."""

from dataclasses import dataclass, replace

from transformers import TrainingArguments

from higgs_trainer.dataset.packing import PackPlan
from higgs_trainer.dataset.prepared import PreparedDataset, read_prepared
from higgs_trainer.model.example_encoding import encode_example
from higgs_trainer.model.loading import Checkpoint
from higgs_trainer.planning.pack_shape import BatchShape, measure_examples
from higgs_trainer.recipe.schema import DataRecipe
from higgs_trainer.tensors import IGNORED

MOST_MEASURED = 1000
"""So many rows of a dataset are encoded."""


@dataclass(frozen=True)
class Work:
    """What a run has to do.

    Attributes:
        shape: its largest batch.
        longest: tokens of the longest example.
        fill: the share of a pack that is not empty.
        batches_per_epoch: on all devices together. None: the data is not prepared.
    """

    shape: BatchShape
    longest: int
    fill: float = 1.0
    batches_per_epoch: int | None = None


def measure_work(data: DataRecipe, outline: Checkpoint, arguments: TrainingArguments) -> Work:
    """Measure the datasets of a recipe, or assume full packs of typical examples if one is not prepared.

    Raises:
        CheckpointError: a folder is there, but is no prepared dataset.
    """
    if not all(one.path.is_dir() for one in data.train):
        shape = BatchShape(0, is_packed=data.packing)
        batch_size = arguments.per_device_train_batch_size
        tokens = data.tokens_per_pack if data.packing else batch_size * shape.example_tokens
        return Work(shape.resize(tokens), shape.example_tokens)
    sets = [read_prepared(one.path) for one in data.train]
    lengths = [length for prepared in sets for length in _measure_rows(prepared, outline)]
    shape = measure_examples(lengths, BatchShape(0, is_packed=data.packing))
    totals = [text + columns for text, columns, _ in lengths]
    weighted = sum(len(one.rows) * given.weight for one, given in zip(sets, data.train, strict=True))
    if not data.packing:
        batch_size = arguments.per_device_train_batch_size
        tokens = batch_size * max(totals)
        # All rows of a batch are as long as the longest one.
        longest = replace(shape, text_tokens=max(totals) - shape.columns, tokens=tokens)
        return Work(longest, max(totals), batches_per_epoch=-(-round(weighted) // batch_size))
    plan = PackPlan(totals, tokens_per_pack=max(data.tokens_per_pack, *totals), seed=arguments.seed)
    packs = [sum(totals[i] for i in group) for group in plan.build_groups(0)]
    fill = sum(packs) / len(packs) / data.tokens_per_pack
    packs_per_epoch = max(1, round(weighted * shape.example_tokens / fill / data.tokens_per_pack))
    return Work(shape.resize(max(packs)), max(totals), fill, packs_per_epoch)


def _measure_rows(prepared: PreparedDataset, outline: Checkpoint) -> list[tuple[int, int, int]]:
    """Return text tokens, columns and supervised columns of rows, evenly chosen if there are many."""
    step = -(-len(prepared.rows) // MOST_MEASURED)
    lengths = []
    for index in range(0, len(prepared.rows), step):
        row = prepared.rows[index]
        example = encode_example(row, outline.tokenizer, outline.stream_ids, outline.sequence)
        columns = len(example.columns_PK)
        supervised = int((example.targets_PK != IGNORED).any(dim=1).sum())
        lengths.append((len(example.input_ids) - columns, columns, supervised))
    return lengths
