"""Draw how a measurement is distributed: bars, axes, and which recordings lie at both ends."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BARS = 40
MOST_TICKS = 6
RECORDINGS_PER_END = 3
TAIL_PERCENT = 1
# With fewer values, one percent is less than one value.
LEAST_TO_CUT = 100


@dataclass(frozen=True)
class Tick:
    """A mark on an axis, at a place in percent of the axis."""

    place: float
    label: str


@dataclass(frozen=True)
class Bar:
    """A bar from ``low`` to ``high``. ``height`` is in percent of the axis."""

    count: int
    height: float
    low: str
    high: str


@dataclass(frozen=True)
class Distribution:
    """A histogram of recordings.

    Attributes:
        unit: the unit of the values, such as "s".
        not_drawn: a sentence about values beyond the axis, or empty.
        median: the median, and its place in percent of the axis.
        lowest, highest: the indices of the values at both ends, the most extreme first.
    """

    title: str
    unit: str
    bars: Sequence[Bar]
    ticks: Sequence[Tick]
    counts: Sequence[Tick]
    median: Tick
    not_drawn: str
    lowest: Sequence[int]
    highest: Sequence[int]


def describe_distribution(title: str, unit: str, values: np.ndarray) -> Distribution:
    """Count values in bars. Of 100 values or more, the axis ends at the 1st and the 99th percentile."""
    low, high = float(values.min()), float(values.max())
    if len(values) >= LEAST_TO_CUT:
        low, high = (float(one) for one in np.percentile(values, [TAIL_PERCENT, 100 - TAIL_PERCENT]))
    # A corpus of equal values has one bar in the middle.
    if high - low < 1e-6:
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(values, bins=BARS, range=(low, high))
    count_step = _choose_step(float(counts.max()), whole=True)
    top = count_step * math.ceil(counts.max() / count_step)
    digits = _count_digits(_choose_step(high - low))
    order = np.argsort(values, kind="stable").tolist()
    lowest = order[:RECORDINGS_PER_END]
    return Distribution(
        title=title,
        unit=unit,
        bars=[
            Bar(int(count), 100 * float(count) / top, f"{left:.{digits + 1}f}", f"{right:.{digits + 1}f}")
            for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True)
        ],
        ticks=_place_ticks(low, high, _choose_step(high - low)),
        counts=_place_ticks(0.0, float(top), count_step),
        median=Tick(
            100 * (float(np.median(values)) - low) / (high - low), f"{float(np.median(values)):.1f} {unit}"
        ),
        not_drawn=_describe_tails(values, low, high, unit),
        lowest=lowest,
        highest=[index for index in order[: -RECORDINGS_PER_END - 1 : -1] if index not in lowest],
    )


def _choose_step(extent: float, *, whole: bool = False) -> float:
    """Return the least of 1, 2, 5, 10, 20 and so on, or 0.5, 0.2 and so on, that makes at most `MOST_TICKS` ticks."""
    least = max(extent / (MOST_TICKS - 1), 1.0 if whole else 0.0)
    power = 10 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def _count_digits(step: float) -> int:
    return max(0, -math.floor(math.log10(step) + 1e-9))


def _place_ticks(low: float, high: float, step: float) -> list[Tick]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = _count_digits(step)
    values = [step * number for number in range(first, last + 1)]
    return [Tick(100 * (value - low) / (high - low), f"{value:,.{digits}f}") for value in values]


def _describe_tails(values: np.ndarray, low: float, high: float, unit: str) -> str:
    below, above = values[values < low], values[values > high]
    parts = [
        f"{len(tail):,} {side} {end:.1f} {unit} ({word} {extreme:.1f})"
        for tail, side, end, word, extreme in (
            (below, "below", low, "down to", values.min()),
            (above, "above", high, "up to", values.max()),
        )
        if len(tail)
    ]
    if not parts:
        return ""
    return f"The axis ends at the 1st and the 99th percentile. Not drawn: {' and '.join(parts)}."
