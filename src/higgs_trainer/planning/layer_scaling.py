"""Derive the counts of a large model and a large batch from those of small ones, which take seconds.

All decoder layers are alike, and tensors grow in proportion to the tokens. So every count is a + b L + c T + d L T in
the number of layers L and of tokens T, and four steps give the four numbers. The peak of a step is the largest of
several such functions, one for each region, and need not be linear itself.
"""

import math
from dataclasses import dataclass, replace

from higgs_trainer.planning.fake_step import FakeRun, count_step
from higgs_trainer.planning.pack_shape import BatchShape
from higgs_trainer.planning.step_counter import StepCounts

FEW_LAYERS = (2, 3)
"""With two layers, the first and the last one are different layers."""
MOST_EXAMPLES = 6
"""Examples of a counted batch. Attention is counted example by example, so many would take long."""

NUMBERS = ("traffic_bytes", "launches", "state_bytes_8bit", "layer_values", "other_values")

Values = dict[tuple[str, ...], float]


@dataclass(frozen=True)
class ScalableCounts:
    """Counts of a step for any number of tokens in the batch."""

    counted_tokens: tuple[int, int]
    counted: tuple[Values, Values]

    def at(self, tokens: int) -> StepCounts:
        """Return the counts of a step with so many tokens."""
        low, high = self.counted_tokens
        return _unflatten(_extrapolate(*self.counted, (tokens - low) / (high - low)))


def count_scalable(run: FakeRun, shape: BatchShape) -> ScalableCounts:
    """Count the step of a run for a batch of this shape and one of half its size.

    A batch of many examples is counted with fewer and longer ones, which take the same memory.
    """
    stretch = max(1, math.ceil(len(shape.list_lengths()) / MOST_EXAMPLES))
    if shape.is_packed:
        shape = replace(
            shape,
            text_tokens=shape.text_tokens * stretch,
            columns=shape.columns * stretch,
            supervised=shape.supervised * stretch,
        )
    full, half = shape.tokens, _halve(shape)
    return ScalableCounts((half, full), (count_layers(run, shape.resize(half)), count_layers(run, shape)))


def _halve(shape: BatchShape) -> int:
    """Return the tokens of a batch of about half the size, which has whole examples if it is padded."""
    if shape.is_packed:
        return max(2, shape.tokens // 2)
    num_examples = shape.tokens // shape.example_tokens
    return shape.example_tokens * (num_examples // 2 if num_examples > 1 else 2)


def count_layers(run: FakeRun, shape: BatchShape) -> Values:
    """Count the step of a run for one batch, with all its layers."""
    num_layers = run.num_layers
    if num_layers <= FEW_LAYERS[1] or not has_equal_layers(run):
        return _flatten(count_step(run, shape, num_layers))
    few, more = (_flatten(count_step(run, shape, number)) for number in FEW_LAYERS)
    return _extrapolate(few, more, float(num_layers - FEW_LAYERS[0]))


def has_equal_layers(run: FakeRun) -> bool:
    """Whether the recipe treats all decoder layers in the same way."""
    adapter, kwargs = run.recipe.adapter, run.arguments.gradient_checkpointing_kwargs or {}
    names_layers = adapter is not None and (
        adapter.layers_to_transform is not None or bool(adapter.rank_pattern)
    )
    return not names_layers and kwargs.get("every_n_layers", 1) == 1


def _extrapolate(first: Values, second: Values, steps: float) -> Values:
    """Return the values that lie `steps` differences after the first ones. Both have the same keys, but for 0."""
    keys = [key for key in first if key in second]
    return {key: max(0.0, first[key] + steps * (second[key] - first[key])) for key in keys}


def _flatten(counts: StepCounts) -> Values:
    values: Values = {("number", name): getattr(counts, name) for name in NUMBERS}
    values |= {("flops", dtype): number for dtype, number in counts.flops.items()}
    for region, parts in counts.peaks.items():
        values |= {("peak", region, part): number for part, number in parts.items()}
    return values


def _unflatten(values: Values) -> StepCounts:
    counts = StepCounts()
    for (kind, *names), number in values.items():
        if kind == "number":
            setattr(counts, names[0], number)
        elif kind == "flops":
            counts.flops[names[0]] = number
        else:
            counts.peaks.setdefault(names[0], {})[names[1]] = number
    return counts
