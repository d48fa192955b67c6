"""Build the tiles of the page: each figure before and after training, and that of the real voice."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from higgs_trainer.evaluation.evaluation_folder import Score
from higgs_trainer.evaluation.precision import TOO_FEW, show_p
from higgs_trainer.report.runs import RunContents
from higgs_trainer.report.scores import (
    ON_TILES,
    Bar,
    Comparison,
    Measure,
    compare_scores,
    draw_bar,
    find_loss_ends,
)


@dataclass(frozen=True)
class Tile:
    """One figure of a run.

    Attributes:
        before: the figure before training; empty if it was not judged.
        verdict: in words, empty without a figure from before. A loss is "lower" or "higher", and never called better,
            because a lower loss may sound worse.
        small: the interval and the test.
        recordings: (name, figure) of the real voice, which is the best that can be reached.
    """

    title: str
    run: str
    before: str
    after: str
    verdict: str
    small: str = ""
    recordings: Sequence[tuple[str, str]] = ()
    bar: Bar | None = None


def build_tiles(runs: Sequence[RunContents]) -> list[Tile]:
    """Return the tiles of the judges' scores, and that of the first and the last held-out loss."""
    return [tile for run in runs for tile in (*_list_scores(run), *_list_loss(run))]


def _list_scores(run: RunContents) -> Iterator[Tile]:
    found = {comparison.key: comparison for comparison in compare_scores(run)}
    for key in ON_TILES:
        if key in found:
            yield _build_tile(found[key], run.name)


def _build_tile(comparison: Comparison, run: str) -> Tile:
    measure, before = comparison.measure, comparison.before
    return Tile(
        title=measure.title,
        run=run,
        before=measure.show(before.value) if before is not None else "",
        after=measure.show(comparison.after.value),
        verdict=comparison.verdict,
        small=_describe_certainty(comparison.after, measure),
        recordings=[(name, measure.show(score.value)) for name, score in comparison.recordings.items()],
        bar=draw_bar(comparison),
    )


def _describe_certainty(score: Score, measure: Measure) -> str:
    parts = []
    if score.low is not None and score.high is not None:
        interval = (score.low, score.high)
        low, high = (measure.style.show(end, interval) for end in interval)
        parts.append(f"95%: {low} to {high}")
    if score.p is not None:
        p = show_p(score.p, score.num_compared)
        parts.append("too few sentences for a test" if p == TOO_FEW else f"p {p}")
    return "; ".join(parts)


def _list_loss(run: RunContents) -> Iterator[Tile]:
    if (ends := find_loss_ends(run, "eval_loss")) is not None:
        (first_step, first), (last_step, last) = ends
        shown = f"{first:.3f}", f"{last:.3f}"
        verdict = "the same" if shown[0] == shown[1] else "lower" if last < first else "higher"
        yield Tile("Held-out loss", run.name, *shown, verdict, f"step {first_step:,} to step {last_step:,}")
