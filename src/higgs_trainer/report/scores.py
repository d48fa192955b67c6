"""Build the headline of the page: scores before and after training, and the change of the held-out loss."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from higgs_trainer.evaluation.evaluation_folder import Score
from higgs_trainer.report.listening import list_judged_sets
from higgs_trainer.report.logs import first_and_last, is_number
from higgs_trainer.report.runs import RunContents
from higgs_trainer.run_folder import AFTER, BEFORE


@dataclass(frozen=True)
class Measure:
    """How a score is named and shown. ``better`` is -1 if lower is better, +1 if higher is better, else 0."""

    title: str
    show: Callable[[float], str]
    better: int
    meaning: str = ""


MEASURES = {
    "wer": Measure(
        "Word errors",
        "{:.1%}".format,
        -1,
        "Word errors: words that a speech recogniser heard wrong, missed or added; 0% is best.",
    ),
    "wer_homophones_forgiven": Measure("with “to” for “two” forgiven", "{:.1%}".format, -1),
    "cer": Measure("Character errors", "{:.1%}".format, -1),
    "similarity": Measure(
        "Likeness to the voice",
        "{:.3f}".format,
        1,
        "Likeness: cosine of speaker embeddings; other clips of one voice have about 0.9, other voices about 0.55.",
    ),
    "similarity_to_others": Measure("Likeness to other voices", "{:.3f}".format, -1),
    "quality": Measure("Predicted quality, 1 to 5", "{:.2f}".format, 1),
    "stopped": Measure("Ended by itself", "{:.0%}".format, 1),
    "length_ratio": Measure("Length, to the recording's", "{:.2f}".format, 0),
}
SIGNIFICANT_BELOW = 0.05
ON_TILES = ("wer", "cer", "similarity", "quality", "stopped")


@dataclass(frozen=True)
class Tile:
    """One figure before and after. ``verdict``: "better", "worse", "the same", or "no clear difference" by a test."""

    title: str
    run: str
    before: str
    after: str
    verdict: str
    small: str


@dataclass(frozen=True)
class ScoreTable:
    """A table of sets of clips by measures. A row is (run, set, one cell for each measure)."""

    titles: list[str]
    rows: list[tuple[str, str, list[str]]]
    meanings: list[str]


def build_tiles(runs: Sequence[RunContents]) -> list[Tile]:
    """Compare the judges' scores before and after, and the first and the last held-out loss, where both exist."""
    return [tile for run in runs for tile in (*_tile_scores(run), *_tile_loss(run))]


def _tile_scores(run: RunContents) -> Iterator[Tile]:
    sets = {one.name: one.scores for one in list_judged_sets(run)}
    before, after = sets.get(BEFORE, {}), sets.get(AFTER, {})
    for key in ON_TILES:
        if key in before and key in after:
            measure, last = MEASURES[key], after[key]
            small = [f"p {last.p:.2g}"] if last.p is not None else []
            if last.low is not None and last.high is not None:
                small.insert(0, f"95%: {measure.show(last.low)} to {measure.show(last.high)}")
            tile = _compare(run, measure, before[key].value, last.value, "; ".join(small))
            is_chance = last.p is not None and last.p >= SIGNIFICANT_BELOW
            yield replace(tile, verdict="no clear difference") if is_chance else tile


def _tile_loss(run: RunContents) -> Iterator[Tile]:
    columns = run.logs.value or {}
    measure = Measure("Held-out loss", "{:.3f}".format, -1)
    if (ends := first_and_last(columns, "eval_loss")) is not None:
        steps = [
            step for step, loss in zip(columns["step"], columns["eval_loss"], strict=True) if is_number(loss)
        ]
        yield _compare(run, measure, *ends, f"step {steps[0]} to step {steps[-1]}")


def _compare(run: RunContents, measure: Measure, before: float, after: float, small: str) -> Tile:
    shown = measure.show(before), measure.show(after)
    gain = (after - before) * measure.better
    verdict = "the same" if shown[0] == shown[1] else "better" if gain > 0 else "worse"
    return Tile(measure.title, run.name, *shown, verdict, small)


def build_table(runs: Sequence[RunContents]) -> ScoreTable | None:
    """List every judged set, or return None if there is none. An unknown measure is shown under its own name."""
    judged = [(run.name, one.name, one.scores) for run in runs for one in list_judged_sets(run)]
    found = {key for _, _, scores in judged for key in scores}
    if not found:
        return None
    keys = [*(key for key in MEASURES if key in found), *sorted(found - set(MEASURES))]
    measures = [MEASURES.get(key, Measure(key, "{:.4g}".format, 0)) for key in keys]
    rows = [
        (
            run,
            name,
            [_show_cell(measure, scores.get(key)) for key, measure in zip(keys, measures, strict=True)],
        )
        for run, name, scores in judged
    ]
    return ScoreTable([m.title for m in measures], rows, [m.meaning for m in measures if m.meaning])


def _show_cell(measure: Measure, score: Score | None) -> str:
    if score is None:
        return "–"
    interval = ""
    if score.low is not None and score.high is not None:
        interval = f" ({measure.show(score.low)} to {measure.show(score.high)})"
    return measure.show(score.value) + interval
