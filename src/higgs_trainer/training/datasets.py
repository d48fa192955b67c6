"""Build the datasets that Trainer reads from prepared datasets: examples in the order of a plan."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import TrainingArguments

from higgs_trainer.audio.codec import Codec
from higgs_trainer.dataset.code_noise import NoisyExamples
from higgs_trainer.dataset.examples import ExampleDataset
from higgs_trainer.dataset.mixing import Mixture
from higgs_trainer.dataset.packing import BatchPlan, PackPlan, Plan, PlannedExamples, measure_tokens
from higgs_trainer.dataset.prepared import (
    PreparedDataset,
    PreparedRows,
    check_codec,
    concatenate,
    read_prepared,
)
from higgs_trainer.errors import RecipeError
from higgs_trainer.limits import MOST_PLANNED_DRAWS
from higgs_trainer.model.example_encoding import build_examples
from higgs_trainer.model.loading import Checkpoint


@dataclass(frozen=True)
class LoadedSets:
    """One or several prepared datasets, concatenated.

    Attributes:
        rows: the rows of all datasets, one dataset after another.
        sizes: the number of rows of each dataset.
        content_hashes: the hash of all rows and codes of each dataset.
        examples: the rows as the model reads them, encoded when they are first read.
    """

    rows: PreparedRows
    sizes: tuple[int, ...]
    content_hashes: tuple[str, ...]
    examples: ExampleDataset


def load_sets(datasets: Sequence[Path | PreparedDataset], checkpoint: Checkpoint, codec: Codec) -> LoadedSets:
    """Open prepared datasets, given as folders or opened already, as one dataset.

    Raises:
        CheckpointError: a folder is not a prepared dataset, or its codes were made by another codec than the model's.
    """
    prepared = [one if isinstance(one, PreparedDataset) else read_prepared(one) for one in datasets]
    for dataset in prepared:
        check_codec(dataset.card, codec)
    rows = concatenate([dataset.rows for dataset in prepared])
    examples = build_examples(rows, checkpoint.tokenizer, checkpoint.stream_ids, checkpoint.sequence)
    return LoadedSets(
        rows,
        tuple(len(dataset.rows) for dataset in prepared),
        tuple(dataset.card.content_hash for dataset in prepared),
        examples,
    )


def plan_training(
    loaded: LoadedSets,
    arguments: TrainingArguments,
    *,
    num_codes: int,
    weights: Sequence[float] | None = None,
    tokens_per_pack: int | None = None,
    code_noise: float = 0.0,
) -> PlannedExamples:
    """Return the training set in the order of its plan: packs, or single examples for padded batches.

    Args:
        num_codes: the number of codes in a codebook, without stream tokens. ``code_noise`` draws from them.
        weights: how often each dataset is drawn in an epoch. None: once.
        tokens_per_pack: the capacity of a pack. None: padded batches.
        code_noise: the share of the input codes that is replaced by random ones.

    Raises:
        RecipeError: an example does not fit into a pack, a weight draws nothing, or there are fewer examples than
            processes.
    """
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    try:
        mixture = Mixture(loaded.sizes, weights or [1.0] * len(loaded.sizes), seed=seed)
    except ValueError as error:
        raise RecipeError(
            f"data.train: {error}. Raise its weight, or remove the set from the recipe."
        ) from error
    shares = {
        "seed": seed,
        "num_ranks": arguments.world_size,
        "accumulation": arguments.gradient_accumulation_steps,
        "mixture": mixture,
    }
    plan: Plan
    if tokens_per_pack is None:
        plan = BatchPlan(len(loaded.examples), batch_size=arguments.per_device_train_batch_size, **shares)
    else:
        lengths = measure_tokens(loaded.examples, tokens_per_pack=tokens_per_pack)
        num_epochs = _count_epochs(arguments, mixture.count_least(lengths) / tokens_per_pack)
        _check_draws(num_epochs, mixture)
        plan = PackPlan(lengths, tokens_per_pack=tokens_per_pack, num_epochs=num_epochs, **shares)
    if not code_noise:
        return PlannedExamples(loaded.examples, plan)
    noisy = NoisyExamples(loaded.examples, code_noise=code_noise, num_codes=num_codes, seed=seed)
    return PlannedExamples(noisy, plan)


def _count_epochs(arguments: TrainingArguments, packs_per_epoch: float) -> int:
    """Return an upper bound of the number of epochs of the run, from a lower bound of the packs in an epoch."""
    if arguments.max_steps <= 0:
        return math.ceil(arguments.num_train_epochs)
    packs = arguments.max_steps * arguments.gradient_accumulation_steps * arguments.world_size
    return 1 + math.ceil(packs / max(1.0, packs_per_epoch))


def _check_draws(num_epochs: int, mixture: Mixture) -> None:
    """Raise an error if planning the epochs, which differ because of the weights, would take hours."""
    draws = num_epochs * len(mixture)
    if not mixture.is_same_every_epoch and draws > MOST_PLANNED_DRAWS:
        raise RecipeError(
            f"training.max_steps or num_train_epochs: up to {num_epochs:,} epochs of {len(mixture):,} examples would "
            f"be planned before training, more than {MOST_PLANNED_DRAWS:,} examples. Train for fewer steps, or give "
            "each set in data.train a whole number as weight."
        )


def plan_evaluation(
    examples: ExampleDataset, arguments: TrainingArguments
) -> ExampleDataset | PlannedExamples:
    """Return the held-out set, divided among the processes if there are several.

    Without a plan, accelerate repeats examples until every process has equally many.
    """
    if arguments.world_size == 1:
        return examples
    batch_size, ranks = arguments.per_device_eval_batch_size, arguments.world_size
    return PlannedExamples(examples, BatchPlan(len(examples), batch_size=batch_size, seed=0, num_ranks=ranks))
