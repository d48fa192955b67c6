"""Thin curves: of a long log, keep the least and the greatest value of each metric in each stretch of lines.

A log of a long run has millions of numbers, but a chart is some hundred pixels wide. Peaks survive, memory is bounded,
and short logs are kept whole.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

Value = float | str | None
Columns = dict[str, list[Value]]
"""Columns of equal length, "step" first. A value is None where a line lacks the key, or its value was left out."""

MOST_BUCKETS = 1024
MOST_COLLECTED = 1024
MOST_KEYS = 150
MOST_KEY_CHARACTERS = 100
# What one page shows: about half a megabyte.
MOST_VALUES_ON_A_PAGE = 24_000

THINNED = "the curves show the least and the greatest value of each metric in each stretch of the log."

Point = tuple[float, int, int]
"""A value, the number of its line and its step."""

Line = tuple[int, int, Mapping[str, float]]
"""The number of a line, its step and its metrics."""


class ThinnedLog:
    """A log that is added line by line, of which a bounded number of values is kept.

    The lines are divided into at most ``most_buckets`` buckets of equally many lines. When there are more lines, two
    neighbouring buckets become one. Each metric keeps its least, its greatest and one infinite value of each bucket,
    its first value and its last.

    Attributes:
        left_out: the metrics that are not kept, because there are more than `MOST_KEYS`.
    """

    def __init__(self, most_buckets: int = MOST_BUCKETS) -> None:
        self.most_buckets = most_buckets
        self.num_lines = 0
        self.lines_per_bucket = 1
        self.left_out: set[str] = set()
        self._first: dict[str, Point] = {}
        self._last: dict[str, Point] = {}
        self._buckets: dict[str, dict[int, list[Point]]] = {}
        # Lines are collected, because Python finds the extremes of a list much faster than one by one.
        self._collected: list[Line] = []

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics of a line."""
        number = self.num_lines
        if number % self.lines_per_bucket == 0 or len(self._collected) == MOST_COLLECTED:
            self._distribute()
        if number == self.most_buckets * self.lines_per_bucket:
            self._join_buckets()
        self._collected.append((number, step, metrics))
        self.num_lines += 1

    def _distribute(self) -> None:
        """Add the collected lines, which belong to one bucket, to the buckets of their metrics."""
        if not self._collected:
            return
        bucket = self._collected[0][0] // self.lines_per_bucket
        for key, lines, values in _list_by_key(self._collected):
            if key not in self._first:
                if len(self._first) >= MOST_KEYS or len(key) > MOST_KEY_CHARACTERS:
                    if len(self.left_out) < MOST_KEYS:
                        self.left_out.add(key[:MOST_KEY_CHARACTERS])
                    continue
                self._first[key], self._buckets[key] = _make_point(lines[0], key), {}
            self._last[key] = _make_point(lines[-1], key)
            points = [_make_point(lines[place], key) for place in _find_extremes(values)]
            earlier = self._buckets[key].get(bucket)
            self._buckets[key][bucket] = keep_extremes([*earlier, *points]) if earlier else points
        self._collected = []

    def _join_buckets(self) -> None:
        self.lines_per_bucket *= 2
        for key, buckets in self._buckets.items():
            joined: dict[int, list[Point]] = {}
            for bucket, points in buckets.items():
                joined.setdefault(bucket // 2, []).extend(points)
            self._buckets[key] = {bucket: keep_extremes(points) for bucket, points in joined.items()}

    def list_columns(self) -> Columns:
        """Return what is kept as columns. Infinite values and NaN become strings, because JSON cannot express them."""
        self._distribute()
        kept = {
            key: {
                number: (value, step)
                for value, number, step in chain(*self._buckets[key].values(), (first, self._last[key]))
            }
            for key, first in self._first.items()
        }
        steps = {number: step for points in kept.values() for number, (_, step) in points.items()}
        numbers = sorted(steps)
        columns: Columns = {"step": [steps[number] for number in numbers]}
        for key, points in kept.items():
            columns[key] = [_to_json(points[number][0]) if number in points else None for number in numbers]
        return columns

    def describe(self) -> str:
        """Say what is not kept, or return an empty text."""
        notes = []
        if self.lines_per_bucket > 1:
            notes.append(f"Of {self.num_lines:,} lines, {THINNED}")
        if self.left_out:
            notes.append(
                f"More than {MOST_KEYS} metrics were logged; at least {len(self.left_out)} are left out."
            )
        return " ".join(notes)


def _list_by_key(lines: list[Line]) -> Iterator[tuple[str, list[Line], Sequence[float]]]:
    """Yield each key with the lines that have it, and its values in them."""
    metrics = [metrics for *_, metrics in lines]
    names = tuple(metrics[0])
    if all(tuple(one) == names for one in metrics):
        # The normal case: transposing takes a third of the time of a look-up for each value.
        for key, values in zip(names, zip(*(one.values() for one in metrics), strict=True), strict=True):
            yield key, lines, values
        return
    for key in dict.fromkeys(chain.from_iterable(metrics)):
        with_key = [line for line in lines if key in line[2]]
        yield key, with_key, [one[key] for *_, one in with_key]


def _make_point(line: Line, key: str) -> Point:
    number, step, metrics = line
    return metrics[key], number, step


def keep_extremes(points: Sequence[Point]) -> list[Point]:
    """Keep the least and the greatest finite value, and the first that is not finite."""
    return [points[place] for place in _find_extremes([value for value, *_ in points])]


def _find_extremes(values: Sequence[float]) -> list[int]:
    """Return the places of the least and the greatest finite value, and of the first that is not finite."""
    if math.isfinite(sum(values)):
        return sorted({values.index(min(values)), values.index(max(values))})
    finite = [place for place, value in enumerate(values) if math.isfinite(value)]
    infinite = [place for place, value in enumerate(values) if not math.isfinite(value)]
    ends = {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)} if finite else set()
    return sorted(ends.union(infinite[:1]))


def _to_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(float(value))


def thin_columns(columns: Columns, most_values: int) -> Columns:
    """Keep at most about ``most_values`` values of each column, as `ThinnedLog` does."""
    thinned = ThinnedLog(most_buckets=max(4, most_values // 2))
    steps = columns.get("step", [])
    keys = [key for key in columns if key != "step"]
    for row, step in enumerate(steps):
        metrics = {key: float(value) for key in keys if (value := columns[key][row]) is not None}
        thinned.add(int(step or 0), metrics)
    return thinned.list_columns()


def fit_on_page(
    runs: Sequence[Columns], most_values: int = MOST_VALUES_ON_A_PAGE
) -> tuple[list[Columns], bool]:
    """Thin the columns of all runs until a page can hold them. Return them, and whether anything was left out."""
    num_values = sum(value is not None for columns in runs for values in columns.values() for value in values)
    if num_values <= most_values:
        return list(runs), False
    num_curves = sum(len(columns) for columns in runs)
    return [thin_columns(columns, most_values // num_curves) for columns in runs], True


def to_sparse(columns: Columns) -> dict[str, Any]:
    """Return columns as the page's script reads them: the steps and, for each key, its rows and its values."""
    curves = {}
    for key, values in columns.items():
        rows = [row for row, value in enumerate(values) if value is not None]
        if key != "step":
            curves[key] = [rows, [values[row] for row in rows]]
    return {"steps": columns.get("step", []), "curves": curves}
