"""Plan which examples go together in each step of an epoch. The plan is seeded and differs in each epoch.

A plan has the same number of groups in every epoch, so that the progress bar and the learning-rate schedule know the
number of steps. That number divides by the ranks, because accelerate's ``BatchSamplerShard`` otherwise silently drops
or repeats batches. Each group is one item of a map-style dataset, so samplers, ranks, step counts and skipping in a
resumed run work as in Trainer. The plan of an epoch depends on seed and epoch only.

The order is in the plan, so the sampler must be sequential (``train_sampling_strategy="sequential"``). With another
sampler and several processes, accelerate would not tell the dataset the epoch.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import fields
from typing import Protocol

import numpy as np
from torch.utils.data import Dataset

from higgs_trainer.dataset.code_noise import Examples
from higgs_trainer.dataset.examples import Example
from higgs_trainer.dataset.mixing import Mixture
from higgs_trainer.errors import RecipeError, list_first
from higgs_trainer.progress import track

SPREADS = (1.0, 0.3, 0.1, 0.0)
"""How much a length may be stretched at random before sorting; tried in this order."""


Group = tuple[int, ...]


class Plan(Protocol):
    """Groups of examples for each epoch, as indices. Every epoch has the same number of groups."""

    def __len__(self) -> int: ...

    def build_groups(self, epoch: int) -> list[Group]: ...


class PlannedExamples(Dataset[tuple[Example, ...]]):
    """Map-style dataset: item i is the i-th group of the epoch's plan, as encoded examples."""

    # The guard reads the columns of a dataset to decide whether the dataset or the collator added a key.
    column_names = tuple(field.name for field in fields(Example))

    def __init__(self, examples: Examples, plan: Plan) -> None:
        self.examples = examples
        self.plan = plan
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Use the plan of this epoch, counted from 0. accelerate's data loader calls this."""
        self.groups = self.plan.build_groups(epoch)
        if hasattr(self.examples, "set_epoch"):
            self.examples.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> tuple[Example, ...]:
        return tuple(self.examples[i] for i in self.groups[index])


class PackPlan:
    """Plan packs with at most ``tokens_per_pack`` tokens, by best fit.

    Each example goes into the fullest pack that still has room for it.

    Sorting by length, longest first, fills best, but would put the same examples together in every epoch. So the
    lengths are stretched at random before they are sorted, by at most one of ``SPREADS``: the largest with which the
    number of packs suffices. If an epoch needs fewer packs than planned, the packs with the most examples are halved.

    Args:
        lengths: the length of each example in tokens, at most ``tokens_per_pack`` (`measure_tokens`).
        num_ranks, accumulation: the number of packs divides by the product of both, so that all steps have equally
            many; with too few examples, by ``num_ranks`` only.
        mixture: draws each epoch's examples from several datasets; by default every example once.
        num_epochs: the number of epochs of the run. If a mixture draws other examples in each epoch, the number of
            packs is the largest that any of these epochs needs.

    Raises:
        RecipeError: there are fewer examples than ranks.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        tokens_per_pack: int,
        seed: int,
        num_ranks: int = 1,
        accumulation: int = 1,
        mixture: Mixture | None = None,
        num_epochs: int = 1,
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.tokens_per_pack = tokens_per_pack
        self.seed = seed
        self.mixture = mixture or Mixture([len(lengths)], [1.0], seed=seed)
        # Epochs that draw other examples may need another number of packs: the largest serves all.
        epochs = range(1 if self.mixture.is_same_every_epoch else num_epochs)
        needed = max(len(self._fit(epoch, SPREADS[-1])) for epoch in epochs)
        needed = max(needed, len(self._fit(0, SPREADS[0])))
        self.num_packs = _round_up(needed, len(self.mixture), num_ranks, accumulation)

    def __len__(self) -> int:
        return self.num_packs

    def build_groups(self, epoch: int) -> list[Group]:
        fits = (self._fit(epoch, spread) for spread in SPREADS)
        packs = next((packs for packs in fits if len(packs) <= self.num_packs), None)
        if packs is None:
            raise ValueError(
                f"epoch {epoch} needs more than the {self.num_packs} packs of this plan. "
                "Build the plan with the number of epochs of the run."
            )
        while len(packs) < self.num_packs:
            most = packs.pop(max(range(len(packs)), key=lambda i: len(packs[i])))
            packs += [most[::2], most[1::2]]
        order = np.random.default_rng((self.seed, epoch)).permutation(len(packs))
        return [tuple(packs[i]) for i in order]

    def _fit(self, epoch: int, spread: float) -> list[list[int]]:
        indices = self.mixture.draw(epoch)
        lengths = self.lengths[indices]
        draws = np.random.default_rng((self.seed, epoch)).random(len(indices))
        stretched = lengths * (1 + spread * draws)
        packs: list[list[int]] = []
        # Pairs (tokens left, pack), sorted.
        room: list[tuple[int, int]] = []
        for position in np.lexsort((draws, -stretched)).tolist():
            i, length = int(indices[position]), int(lengths[position])
            tightest = bisect_left(room, (length, -1))
            if tightest == len(room):
                packs.append([i])
                insort(room, (self.tokens_per_pack - length, len(packs) - 1))
            else:
                left, pack = room.pop(tightest)
                packs[pack].append(i)
                insort(room, (left - length, pack))
        return packs


class BatchPlan:
    """Plan single examples in random order, without packing. Trainer takes ``batch_size`` of them at a time.

    The sizes of an epoch's batches differ by at most one. Batches that are not full are filled with empty groups, which
    the collator skips.

    Raises:
        RecipeError: there are fewer examples than ranks.
    """

    def __init__(
        self,
        num_examples: int,
        *,
        batch_size: int,
        seed: int,
        num_ranks: int = 1,
        accumulation: int = 1,
        mixture: Mixture | None = None,
    ) -> None:
        self.batch_size = batch_size
        self.seed = seed
        self.mixture = mixture or Mixture([num_examples], [1.0], seed=seed)
        drawn = len(self.mixture)
        self.num_batches = _round_up(-(-drawn // batch_size), drawn, num_ranks, accumulation)

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    def build_groups(self, epoch: int) -> list[Group]:
        order = np.random.default_rng((self.seed, epoch)).permutation(self.mixture.draw(epoch))
        groups: list[Group] = []
        for batch in np.array_split(order, self.num_batches):
            groups += [(int(i),) for i in batch]
            groups += [()] * (self.batch_size - len(batch))
        return groups


def measure_tokens(examples: Examples, *, tokens_per_pack: int) -> list[int]:
    """Encode all examples and return their lengths in tokens. Shows a progress bar.

    Raises:
        RecipeError: some examples are longer than a pack; names them. Examples are never cut.
    """
    lengths: list[int] = []
    too_long: list[str] = []
    for i in track(range(len(examples)), "measuring", len(examples), stays=False):
        example = examples[i]
        lengths.append(len(example.input_ids))
        if lengths[-1] > tokens_per_pack:
            too_long.append(f"{example.utterance_id} ({lengths[-1]} tokens)")
    if too_long:
        raise RecipeError(
            f"data.tokens_per_pack is {tokens_per_pack}, less than {list_first(too_long)}. "
            "Raise it, or leave these utterances out of the manifest."
        )
    return lengths


def _round_up(count: int, num_examples: int, num_ranks: int, accumulation: int) -> int:
    """Round ``count`` up so that every rank and, if possible, every step gets equally many groups."""
    for multiple in (num_ranks * accumulation, num_ranks):
        rounded = -(-count // multiple) * multiple
        if rounded <= num_examples:
            return rounded
    raise RecipeError(
        f"{num_examples} examples cannot be shared among {num_ranks} processes. Use fewer processes, or more data."
    )
