"""Mixing datasets by weight: how often each example is seen, and that a draw depends on seed and epoch alone."""

from collections import Counter

import numpy as np
import pytest

from higgs_trainer.dataset.mixing import Mixture
from higgs_trainer.dataset.packing import BatchPlan, PackPlan


def count_draws(mixture: Mixture, num_epochs: int) -> Counter[int]:
    return Counter(int(i) for epoch in range(num_epochs) for i in mixture.draw(epoch))


def test_one_set_of_weight_1_is_drawn_in_order() -> None:
    mixture = Mixture([7], [1.0], seed=3)
    assert mixture.draw(0).tolist() == mixture.draw(5).tolist() == list(range(7))
    assert mixture.is_same_every_epoch


def test_a_whole_weight_repeats_every_example() -> None:
    mixture = Mixture([3, 2], [2.0, 1.0], seed=0)
    assert mixture.draw(4).tolist() == [0, 0, 1, 1, 2, 2, 3, 4]
    assert len(mixture) == 8


def test_every_example_of_a_set_is_seen_equally_often() -> None:
    mixture = Mixture([11, 6], [0.5, 1.5], seed=1)
    assert len(mixture) == 6 + 9
    assert not mixture.is_same_every_epoch
    for num_epochs in range(1, 12):
        seen = count_draws(mixture, num_epochs)
        for indices, count in ((range(11), 6), (range(11, 17), 9)):
            times = [seen[i] for i in indices]
            assert sum(times) == count * num_epochs
            assert max(times) - min(times) <= 1


def test_epochs_and_seeds_draw_differently_and_the_same_ones_alike() -> None:
    mixture = Mixture([50], [0.3], seed=1)
    again = Mixture([50], [0.3], seed=1)
    # Out of order, as after a resume.
    assert again.draw(3).tolist() == mixture.draw(3).tolist()
    assert mixture.draw(0).tolist() != mixture.draw(1).tolist()
    assert mixture.draw(0).tolist() != Mixture([50], [0.3], seed=2).draw(0).tolist()
    assert all(np.diff(mixture.draw(2)) >= 0)


def test_a_weight_that_draws_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"set 2 has 10 examples and weight 0\.01: an epoch would draw none"):
        Mixture([5, 10], [1.0, 0.01], seed=0)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_every_epoch_of_a_mixture_has_the_same_number_of_packs(accumulation: int) -> None:
    lengths = np.random.default_rng(0).integers(20, 300, size=90).tolist()
    mixture = Mixture([60, 30], [0.4, 1.5], seed=5)
    plan = PackPlan(
        lengths, tokens_per_pack=700, seed=5, accumulation=accumulation, mixture=mixture, num_epochs=7
    )
    for epoch in range(7):
        packs = plan.build_groups(epoch)
        assert len(packs) == len(plan)
        assert len(packs) % accumulation == 0
        assert sorted(i for pack in packs for i in pack) == mixture.draw(epoch).tolist()
        assert max(sum(lengths[i] for i in pack) for pack in packs) <= 700


def test_batches_of_a_mixture_hold_what_it_draws() -> None:
    mixture = Mixture([4, 9], [3.0, 0.5], seed=2)
    plan = BatchPlan(13, batch_size=5, seed=2, mixture=mixture)
    for epoch in range(3):
        groups = plan.build_groups(epoch)
        assert len(groups) == len(plan)
        assert sorted(i for group in groups for i in group) == mixture.draw(epoch).tolist()


def test_no_epoch_draws_less_than_the_lower_bound() -> None:
    """The short set is drawn often, so the mean length of all examples would be too high a bound."""
    lengths = [10, 12, 11, 400, 300, 200, 100]
    mixture = Mixture([3, 4], [3.0, 0.5], seed=4)
    least = mixture.count_least(lengths)
    assert least == 3 * 33 + (100 + 200)
    odd = Mixture([3, 4], [1.4, 0.8], seed=4)
    for one in (mixture, odd):
        drawn = [sum(lengths[i] for i in one.draw(epoch)) for epoch in range(60)]
        assert min(drawn) >= one.count_least(lengths)
    assert least < len(mixture) * sum(lengths) / len(lengths)


def test_an_epoch_that_the_plan_was_not_made_for_is_an_error() -> None:
    # One example of an epoch fills a pack alone; the others go together.
    lengths = [90, 90, 90, 10, 10, 10]
    mixture = Mixture([6], [0.5], seed=0)
    plan = PackPlan(lengths, tokens_per_pack=100, seed=0, mixture=mixture, num_epochs=1)
    plan.num_packs = 0
    with pytest.raises(ValueError, match="epoch 3 needs more than the 0 packs of this plan"):
        plan.build_groups(3)
