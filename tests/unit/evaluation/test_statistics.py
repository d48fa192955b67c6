"""Intervals and tests, against references that are computed by enumeration or by hand."""

import itertools

import numpy as np
import pytest

from higgs_trainer.evaluation.statistics import (
    Difference,
    Figure,
    Ratio,
    compare,
    compute_smallest_p,
    estimate,
)


def test_a_rate_is_of_all_utterances_together() -> None:
    errors, words = np.array([1.0, 0.0, 2.0, 0.0, 0.0, 0.0]), np.array([1.0, 7.0, 5.0, 1.0, 1.0, 1.0])
    figure = estimate(Ratio(errors, words))
    assert figure is not None
    assert (figure.value, figure.n) == (3 / 16, 6)
    # (4/6)^6 = 8.8% of the resamples have neither of the utterances with errors: more than 2.5%.
    assert figure.low == 0.0
    assert figure.high > figure.value


def test_the_interval_is_that_of_all_resamples() -> None:
    errors, words = np.array([1.0, 0.0, 2.0, 1.0, 5.0, 2.0]), np.array([4.0, 7.0, 5.0, 3.0, 6.0, 9.0])
    other = np.array([2.0, 1.0, 0.0, 1.0, 3.0, 3.0])
    drawn = np.array(list(itertools.product(range(6), repeat=6)))
    first, second = (e[drawn].sum(axis=1) / words[drawn].sum(axis=1) for e in (errors, other))
    figure, difference = (
        estimate(Ratio(errors, words)),
        compare(Ratio(errors, words), Ratio(other, words)),
    )
    assert (figure.low, figure.high) == pytest.approx(tuple(np.quantile(first, [0.025, 0.975])), abs=0.01)
    expected = tuple(np.quantile(second - first, [0.025, 0.975]))
    assert (difference.low, difference.high) == pytest.approx(expected, abs=0.01)


def test_one_utterance_has_a_value_but_neither_interval_nor_test() -> None:
    one, other = Ratio.of_values(np.array([2.0])), Ratio.of_values(np.array([5.0]))
    assert estimate(one) == Figure(2.0, None, None, 1)
    assert compare(one, other) == Difference(3.0, None, None, 1.0, 1)


@pytest.mark.parametrize("n", [2, 3, 5, 6, 9, 13])
def test_the_smallest_p_is_that_of_two_swaps_in_all(n: int) -> None:
    """Every utterance differs in the same direction: only no swap at all, and all swaps, give such a difference."""
    worse = compare(Ratio.of_values(np.zeros(n)), Ratio.of_values(np.linspace(1.0, 2.0, n)))
    assert worse is not None
    assert worse.p == pytest.approx(2 / 2**n) == compute_smallest_p(n)
    assert (worse.low is None) == (n < 6)


def test_the_smallest_p_of_random_swaps_is_two_of_all() -> None:
    worse = compare(Ratio.of_values(np.zeros(40)), Ratio.of_values(np.ones(40)))
    assert worse is not None
    assert worse.p == compute_smallest_p(40) == pytest.approx(2 / 10_001)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, size=400)
    figure = estimate(Ratio.of_values(values))
    assert figure is not None
    half = 1.96 * values.std() / 20
    assert figure.value == pytest.approx(values.mean())
    assert figure.low == pytest.approx(values.mean() - half, abs=0.02)
    assert figure.high == pytest.approx(values.mean() + half, abs=0.02)


def test_utterances_without_a_value_are_left_out() -> None:
    figure = estimate(Ratio.of_values(np.array([1.0, np.nan, 3.0])))
    assert figure is not None
    assert (figure.value, figure.n) == (2.0, 2)
    assert estimate(Ratio.of_values(np.array([np.nan]))) is None
    one, other = Ratio.of_values(np.array([1.0, np.nan, 3.0])), Ratio.of_values(np.array([4.0, 9.0, np.nan]))
    difference = compare(one, other)
    assert difference is not None
    assert (difference.value, difference.n) == (3.0, 1)
    assert compare(one, Ratio.of_values(np.array([np.nan, 1.0, np.nan]))) is None


@pytest.mark.parametrize("words", [np.ones(9), np.array([3.0, 5.0, 4.0, 4.0, 7.0, 2.0, 6.0, 5.0, 3.0])])
def test_p_is_the_share_of_all_swaps_that_differ_as_much(words: np.ndarray) -> None:
    random = np.random.default_rng(4)
    first, second = random.integers(0, 3, 9).astype(float), random.integers(0, 5, 9).astype(float)
    seen = abs(second.sum() / words.sum() - first.sum() / words.sum())
    as_large = 0
    for swaps in itertools.product([False, True], repeat=9):
        one, other = np.where(swaps, second, first), np.where(swaps, first, second)
        as_large += abs(other.sum() - one.sum()) / words.sum() >= seen - 1e-12
    difference = compare(Ratio(first, words), Ratio(second, words))
    assert difference is not None
    assert 0.01 < difference.p < 0.9, "the case should be neither clear nor hopeless"
    assert difference.p == pytest.approx(as_large / 2**9, abs=1e-12)


def test_p_of_many_utterances_is_close_to_the_share_of_all_swaps() -> None:
    random = np.random.default_rng(5)
    differences = random.normal(0.5, 1.0, 15)
    signs = np.array(list(itertools.product([-1, 1], repeat=15)))
    share = (np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9).mean()
    difference = compare(Ratio.of_values(np.zeros(15)), Ratio.of_values(differences))
    assert 0.01 < share < 0.9
    assert difference.p == pytest.approx(share, abs=0.015)


def test_the_difference_is_paired() -> None:
    random = np.random.default_rng(2)
    hard = random.normal(0.0, 10.0, 200)  # some sentences are much harder than others, for both alike
    first, second = Ratio.of_values(hard), Ratio.of_values(hard + random.normal(0.5, 0.3, 200))
    difference = compare(first, second)
    assert difference is not None
    assert 0.4 < difference.low < difference.value < difference.high < 0.6
    assert difference.p < 0.001


def test_chance_is_called_significant_about_one_time_in_twenty() -> None:
    random = np.random.default_rng(7)
    ps = [
        compare(Ratio.of_values(random.normal(size=12)), Ratio.of_values(random.normal(size=12))).p
        for _ in range(60)
    ]
    assert 0 <= sum(p < 0.05 for p in ps) <= 8


def test_the_same_seed_gives_the_same_interval() -> None:
    ratio = Ratio.of_values(np.random.default_rng(3).normal(size=20))
    assert estimate(ratio, seed=5) == estimate(ratio, seed=5) != estimate(ratio, seed=6)
    assert compare(ratio, ratio) == compare(ratio, ratio)
    assert compare(ratio, ratio).p == 1.0
