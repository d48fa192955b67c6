"""How sure a figure is, and a difference: by resampling the utterances, seeded.

A figure is a sum over utterances by a sum over utterances: a word error rate is errors by words, a mean is values by
ones. So utterances are resampled, not words, since the errors of one utterance come together.
"""

from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
AT_ONCE = 1_000  # so that long lists of utterances do not fill the memory


@dataclass(frozen=True)
class Ratio:
    """The parts of a figure, one each utterance (N,); NaN in both where an utterance has no such value."""

    above: np.ndarray
    below: np.ndarray

    @classmethod
    def of_values(cls, values: np.ndarray) -> "Ratio":
        """A mean."""
        values = np.asarray(values, dtype=np.float64)
        return cls(values, np.where(np.isnan(values), np.nan, 1.0))

    @property
    def is_known(self) -> np.ndarray:
        """Which utterances count (N,)."""
        return ~np.isnan(self.above)

    def among(self, chosen: np.ndarray) -> "Ratio":
        return Ratio(self.above[chosen], self.below[chosen])

    @property
    def value(self) -> float:
        return float(self.above.sum() / self.below.sum())


@dataclass(frozen=True)
class Figure:
    """A value with its 95% interval, of ``n`` utterances."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference:
    """Second minus first on the same ``n`` utterances, its 95% interval, and how often chance alone would give one as
    large (``p``, two-sided)."""

    value: float
    low: float
    high: float
    p: float
    n: int


def estimate(ratio: Ratio, *, seed: int = 0) -> Figure | None:
    """The percentile bootstrap: 95% of the values that as many utterances, drawn with replacement, would have given.
    None where no utterance has a value."""
    known = ratio.among(ratio.is_known)
    n = len(known.above)
    if not n:
        return None
    low, high = np.quantile(_resample(known, seed), [0.025, 0.975])
    return Figure(known.value, float(low), float(high), n)


def compare(first: Ratio, second: Ratio, *, seed: int = 0) -> Difference | None:
    """Two models on the same utterances: the paired bootstrap for the interval, a paired permutation test for ``p``.

    The test: if there were no difference, then which model said an utterance would not matter; so the two are swapped
    at random, utterance by utterance, and ``p`` is the share of `RESAMPLES` swaps that give as large a difference as
    was seen, that one counted in. None where no utterance has both values.
    """
    known = first.is_known & second.is_known
    first, second = first.among(known), second.among(known)
    n = len(first.above)
    if not n:
        return None
    seen = second.value - first.value
    low, high = np.quantile(_resample(second, seed) - _resample(first, seed), [0.025, 0.975])
    random, as_large = np.random.default_rng(seed), 0
    for _ in range(RESAMPLES // AT_ONCE):
        swapped_RN = random.random((AT_ONCE, n)) < 0.5
        one = _sum_where(swapped_RN, second, first)
        other = _sum_where(swapped_RN, first, second)
        as_large += int((np.abs(other - one) >= abs(seen) - 1e-12).sum())
    return Difference(seen, float(low), float(high), (as_large + 1) / (RESAMPLES + 1), n)


def _resample(ratio: Ratio, seed: int) -> np.ndarray:
    """Values (R,) of resampled utterances; the same seed draws the same utterances, so differences are paired."""
    random, n = np.random.default_rng(seed), len(ratio.above)
    values = []
    for _ in range(RESAMPLES // AT_ONCE):
        drawn_RN = random.integers(n, size=(AT_ONCE, n))
        values.append(ratio.above[drawn_RN].sum(axis=1) / ratio.below[drawn_RN].sum(axis=1))
    return np.concatenate(values)


def _sum_where(is_first_RN: np.ndarray, first: Ratio, second: Ratio) -> np.ndarray:
    """Values (R,) of utterances taken from one or the other."""
    above = np.where(is_first_RN, first.above, second.above).sum(axis=1)
    return above / np.where(is_first_RN, first.below, second.below).sum(axis=1)
