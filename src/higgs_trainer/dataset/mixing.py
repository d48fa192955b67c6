"""Mix several datasets by weight: which examples an epoch draws from each."""

import math
from collections.abc import Sequence

import numpy as np


class Mixture:
    """The draw of each epoch from several datasets that are concatenated, as indices into the whole.

    A weight is the number of times that an example is seen in an epoch, on average: 2 draws every example twice, and
    0.5 draws every example once in two epochs. Each dataset is an endless sequence of passes, each in another
    permutation, and epoch e takes the e-th slice of that sequence. So all examples of a dataset are seen equally often
    (to within one), every epoch draws the same number of examples, and the draw depends on seed and epoch alone: a
    resumed run continues it exactly.

    Args:
        sizes: the number of examples of each dataset, in the order in which they are concatenated.
        weights: one weight for each dataset, above 0.
        seed: the seed of the permutations.

    Raises:
        ValueError: a dataset's weight is so small that an epoch would draw none of it.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], *, seed: int) -> None:
        self.sizes = tuple(sizes)
        self.seed = seed
        self.counts = tuple(round(size * weight) for size, weight in zip(sizes, weights, strict=True))
        for position, (size, count) in enumerate(zip(self.sizes, self.counts, strict=True)):
            if count < 1:
                raise ValueError(
                    f"set {position + 1} has {size} examples and weight {weights[position]:g}: "
                    "an epoch would draw none of them"
                )

    def __len__(self) -> int:
        """Return the number of examples in an epoch."""
        return sum(self.counts)

    @property
    def is_same_every_epoch(self) -> bool:
        """Whether every epoch draws the same examples: all sets are drawn a whole number of times."""
        return all(count % size == 0 for size, count in zip(self.sizes, self.counts, strict=True))

    def count_least(self, lengths: Sequence[int]) -> int:
        """Return a lower bound of the total length of the examples that any epoch draws.

        Args:
            lengths: one for each example of the concatenated datasets.
        """
        least, start = 0, 0
        for size, count in zip(self.sizes, self.counts, strict=True):
            # Entry k is the total length of the k shortest examples.
            shortest = np.concatenate(([0], np.cumsum(np.sort(lengths[start : start + size]))))
            # An epoch draws the end of one pass, whole passes, and the beginning of another.
            end = np.arange(0, min(size, count + 1), math.gcd(size, count))
            whole, beginning = np.divmod(count - end, size)
            least += int((shortest[end] + whole * shortest[-1] + shortest[beginning]).min())
            start += size
        return least

    def draw(self, epoch: int) -> np.ndarray:
        """Return the indices of an epoch's examples, ascending; an index occurs as often as its example is seen."""
        starts = np.cumsum((0, *self.sizes[:-1]))
        drawn = [start + self._draw_from(position, epoch) for position, start in enumerate(starts)]
        return np.sort(np.concatenate(drawn))

    def _draw_from(self, position: int, epoch: int) -> np.ndarray:
        size, count = self.sizes[position], self.counts[position]
        first, end = epoch * count, (epoch + 1) * count
        passes = range(first // size, -(-end // size))
        order = [np.random.default_rng((self.seed, position, number)).permutation(size) for number in passes]
        skipped = first - passes.start * size
        return np.concatenate(order)[skipped : skipped + count]
