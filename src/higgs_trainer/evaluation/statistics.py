"""Compute how certain a figure or a difference is: bootstrap and permutation test over utterances, by scipy.

Each figure is a sum over utterances divided by a sum over utterances: a word error rate is errors by words, a mean is
values by ones. Utterances are resampled, not words, because the errors of one utterance depend on each other.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import bootstrap, permutation_test

RESAMPLES = 10_000
MOST_SWAPPED_IN_FULL = 13
"""Utterances up to which the test counts all swaps: the most whose 2^n are no more than `RESAMPLES`."""
FEWEST_UTTERANCES = 6
"""With fewer, no p can be below 0.05, and so few resamples differ that a 95% interval is none."""
BATCH = 1_000
"""Resamples that scipy holds in memory at once."""


@dataclass(frozen=True)
class Ratio:
    """Numerator and denominator of a figure for each utterance (N,). NaN in both: the utterance has no such value."""

    numerator: np.ndarray
    denominator: np.ndarray

    @classmethod
    def of_values(cls, values: np.ndarray) -> "Ratio":
        """Build the ratio whose value is the mean."""
        values = np.asarray(values, dtype=np.float64)
        return cls(values, np.where(np.isnan(values), np.nan, 1.0))

    @property
    def is_known(self) -> np.ndarray:
        """Which utterances have a value (N,)."""
        return ~np.isnan(self.numerator)

    def select(self, chosen: np.ndarray) -> "Ratio":
        """Keep some utterances."""
        return Ratio(self.numerator[chosen], self.denominator[chosen])

    @property
    def value(self) -> float:
        """The figure over all utterances."""
        return float(self.numerator.sum() / self.denominator.sum())


@dataclass(frozen=True)
class Figure:
    """A value over ``n`` utterances with its 95% interval: None for fewer than `FEWEST_UTTERANCES`."""

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Second minus first over the same ``n`` utterances, its 95% interval, and the two-sided ``p`` of the test.

    Fewer than `FEWEST_UTTERANCES` have no interval: None. Their p cannot be below 0.05, whatever is true; that of a
    single utterance is 1.
    """

    value: float
    low: float | None
    high: float | None
    p: float
    n: int


def estimate(ratio: Ratio, *, seed: int = 0) -> Figure | None:
    """Compute a figure with its percentile bootstrap interval. None if no utterance has a value."""
    known = ratio.select(ratio.is_known)
    n = len(known.numerator)
    if n == 0:
        return None
    if n < FEWEST_UTTERANCES:
        return Figure(known.value, None, None, n)
    low, high = _bootstrap(_divide, (known.numerator, known.denominator), seed)
    return Figure(known.value, low, high, n)


def compare(first: Ratio, second: Ratio, *, seed: int = 0) -> Difference | None:
    """Compare two models on the same utterances: paired bootstrap for the interval, paired permutation test for ``p``.

    The test asks how often a difference as large would arise if it did not matter which of the two models spoke an
    utterance. It swaps the two within utterances: all 2^n ways up to 13 utterances, `RESAMPLES` random ones beyond.
    None if no utterance has both values.
    """
    known = first.is_known & second.is_known
    first, second = first.select(known), second.select(known)
    n = len(first.numerator)
    if n == 0:
        return None
    value = second.value - first.value
    if n == 1:
        return Difference(value, None, None, 1.0, n)
    if n < FEWEST_UTTERANCES:
        return Difference(value, None, None, _compute_p(first, second, seed), n)
    low, high = _bootstrap(
        lambda a1, b1, a2, b2, axis: _divide(a2, b2, axis) - _divide(a1, b1, axis),
        (first.numerator, first.denominator, second.numerator, second.denominator),
        seed,
    )
    return Difference(value, low, high, _compute_p(first, second, seed), n)


def compute_smallest_p(n: int) -> float:
    """Return the smallest p that the test of ``n`` utterances can give: 2^-(n-1), as far as all swaps are counted."""
    return 2.0 ** (1 - n) if n <= MOST_SWAPPED_IN_FULL else 2 / (RESAMPLES + 1)


def _divide(numerator: np.ndarray, denominator: np.ndarray, axis: int) -> Any:
    return numerator.sum(axis=axis) / denominator.sum(axis=axis)


def _bootstrap(statistic: Any, parts: tuple[np.ndarray, ...], seed: int) -> tuple[float, float]:
    found = bootstrap(
        parts,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=BATCH,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def _compute_p(first: Ratio, second: Ratio, seed: int) -> float:
    """Compute p by swapping indices of utterances, so that numerator and denominator are swapped together."""
    n = len(first.numerator)
    numerator = np.concatenate([first.numerator, second.numerator])
    denominator = np.concatenate([first.denominator, second.denominator])

    def subtract(one: np.ndarray, other: np.ndarray, axis: int) -> Any:
        one, other = one.astype(int), other.astype(int)
        value_of_one = _divide(numerator[one], denominator[one], axis)
        difference = _divide(numerator[other], denominator[other], axis) - value_of_one
        # Two equal differences must not become unequal by the order of a sum.
        return np.round(difference, 12)

    found = permutation_test(
        (np.arange(n), np.arange(n, 2 * n)),
        subtract,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=BATCH,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)
