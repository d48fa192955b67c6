"""A histogram counts every value that it draws, and says which ones it does not draw."""

import numpy as np
import pytest

from higgs_trainer.corpus.distribution import BARS, describe_distribution


def test_a_few_values_are_all_drawn() -> None:
    values = np.array([0.3, 2.0, 1.0, 4.2, 1.0])
    shape = describe_distribution("Duration", "s", values)
    assert sum(bar.count for bar in shape.bars) == 5
    assert shape.not_drawn == ""
    assert [tick.label for tick in shape.ticks] == ["1", "2", "3", "4"]
    assert [tick.place for tick in shape.ticks] == pytest.approx(
        [100 * (t - 0.3) / 3.9 for t in (1, 2, 3, 4)]
    )
    assert shape.median.label == "1.0 s"
    assert (list(shape.lowest), list(shape.highest)) == ([0, 2, 4], [3, 1])


def test_the_tails_of_many_values_are_cut_and_counted() -> None:
    """Of 0 to 999 the axis shows 10 to 989, and two of them lie exactly on its ends or inside."""
    values = np.arange(1000.0)
    shape = describe_distribution("Peak", "dBFS", values)
    low, high = np.percentile(values, [1, 99])
    assert sum(bar.count for bar in shape.bars) == ((values >= low) & (values <= high)).sum() == 980
    assert shape.not_drawn == (
        "The axis ends at the 1st and the 99th percentile. Not drawn: 10 below 10.0 dBFS (down to 0.0) and 10 above "
        "989.0 dBFS (up to 999.0)."
    )
    assert list(shape.highest) == [999, 998, 997]


def test_the_axis_of_counts_has_whole_numbers_and_room_for_the_highest_bar() -> None:
    shape = describe_distribution("Duration", "s", np.repeat([1.0, 2.0, 5.0], [7, 31, 2]))
    assert [tick.label for tick in shape.counts] == ["0", "10", "20", "30", "40"]
    heights = [bar.height for bar in shape.bars if bar.count]
    assert heights == pytest.approx([100 * 7 / 40, 100 * 31 / 40, 100 * 2 / 40])
    single = describe_distribution("Duration", "s", np.array([1.0, 2.0]))
    assert [tick.label for tick in single.counts] == ["0", "1"]


@pytest.mark.parametrize("extent", [1e-5, 0.07, 1.0, 3.3, 10.0, 99.0, 1e4])
def test_an_axis_has_two_to_six_ticks(extent: float) -> None:
    for low in (-20.03, 0.0, 7.7):
        shape = describe_distribution("x", "s", np.array([low, low + extent]))
        assert 2 <= len(shape.ticks) <= 6
        assert len({tick.label for tick in shape.ticks}) == len(shape.ticks)
        assert all(-0.001 <= tick.place <= 100.001 for tick in shape.ticks)


def test_equal_values_are_one_bar() -> None:
    shape = describe_distribution("Duration", "s", np.full(5, 2.0))
    assert [bar.count for bar in shape.bars if bar.count] == [5]
    assert len(shape.bars) == BARS
    assert shape.median.place == pytest.approx(50)
