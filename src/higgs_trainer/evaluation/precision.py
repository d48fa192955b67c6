"""Show a figure with the digits that its number of utterances allows, and no more."""

import math
from dataclasses import dataclass

from higgs_trainer.evaluation.statistics import FEWEST_UTTERANCES, compute_smallest_p

TOO_FEW = "too few"
PARTS_OF_INTERVAL = 20
"""A digit is shown if its step is at most this part of the interval."""


@dataclass(frozen=True)
class NumberStyle:
    """How a figure is written: with at most this many decimals, as a number or in percent."""

    decimals: int
    is_percent: bool = False

    def show(self, value: float, interval: tuple[float, float] | None = None, *, sign: bool = False) -> str:
        """Write a number. A wide ``interval`` takes decimals away that say nothing."""
        decimals = self.decimals if interval is None else self._count_decimals(*interval)
        return f"{value:{'+' if sign else ''}.{decimals}{'%' if self.is_percent else 'f'}}"

    def show_with_interval(
        self, value: float, low: float | None, high: float | None, *, pattern: str, sign: bool = False
    ) -> str:
        """Write a figure and, if it has one, its interval as ``pattern`` says: "{} to {}"."""
        if low is None or high is None:
            return self.show(value, sign=sign)
        ends = (self.show(end, (low, high), sign=sign) for end in (low, high))
        return f"{self.show(value, (low, high), sign=sign)} {pattern.format(*ends)}"

    def _count_decimals(self, low: float, high: float) -> int:
        width = (high - low) * (100 if self.is_percent else 1)
        if width <= 0:
            return self.decimals
        return min(self.decimals, max(0, math.ceil(-math.log10(width / PARTS_OF_INTERVAL))))


def count_p_decimals(p: float, n: int) -> int:
    """Return the decimals of a p over ``n`` utterances: two digits, and none below the smallest p that there can be."""
    smallest = math.ceil(-math.log10(compute_smallest_p(n)))
    return min(smallest, 1 - math.floor(math.log10(p)) if 0 < p < 1 else 1)


def round_p(p: float, n: int) -> float:
    """Round a p over ``n`` utterances to its digits. Of too few utterances, it is one of a few exact numbers."""
    return p if n < FEWEST_UTTERANCES else round(p, count_p_decimals(p, n))


def show_p(p: float, n: int | None) -> str:
    """Write a p over ``n`` utterances, or that they are too few for any p below 0.05. None: the number is not known."""
    if n is None:
        return f"{p:.2g}"
    if n < FEWEST_UTTERANCES:
        return TOO_FEW
    return f"{p:.{count_p_decimals(p, n)}f}"
