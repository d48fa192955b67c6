"""Compare the scores of a run before and after training with those of the real voice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from higgs_trainer.evaluation.evaluation_folder import Score, split_language
from higgs_trainer.evaluation.precision import NumberStyle
from higgs_trainer.report.listening import list_judged_sets
from higgs_trainer.report.logs import is_number
from higgs_trainer.report.runs import RunContents
from higgs_trainer.run_folder import AFTER, BEFORE, REAL_VOICE, REAL_VOICE_DECODED, RECORDINGS


@dataclass(frozen=True)
class Measure:
    """How a score is named and shown. ``better`` is -1 if lower is better, +1 if higher is better, else 0."""

    title: str
    style: NumberStyle
    better: int
    meaning: str = ""

    def show(self, value: float) -> str:
        """Write a score."""
        return self.style.show(value)

    def show_with_interval(self, score: Score) -> str:
        """Write a score and its interval, with the digits that the interval allows."""
        return self.style.show_with_interval(score.value, score.low, score.high, pattern="({} to {})")


MEASURES = {
    "wer": Measure(
        "Word errors",
        NumberStyle(1, is_percent=True),
        -1,
        "Word errors: words that a speech recogniser heard wrong, missed or added; 0% is best.",
    ),
    "wer_homophones_forgiven": Measure("with “to” for “two” forgiven", NumberStyle(1, is_percent=True), -1),
    "cer": Measure("Character errors", NumberStyle(1, is_percent=True), -1),
    "similarity": Measure(
        "Likeness to the voice",
        NumberStyle(3),
        1,
        "Likeness: cosine of speaker embeddings; other clips of one voice have about 0.9, other voices about 0.55.",
    ),
    "similarity_to_others": Measure("Likeness to other voices", NumberStyle(3), -1),
    "quality": Measure("Predicted quality, 1 to 5", NumberStyle(2), 1),
    "stopped": Measure("Ended by itself", NumberStyle(0, is_percent=True), 1),
    "length_ratio": Measure("Length, to the recording's", NumberStyle(2), 0),
}
SIGNIFICANT_BELOW = 0.05
ON_TILES = ("wer", "cer", "similarity", "quality", "stopped")
BETTER, WORSE, SAME, UNCLEAR = "better", "worse", "the same", "no clear difference"

NAMES_OF_RECORDINGS = {
    REAL_VOICE: (REAL_VOICE, RECORDINGS),
    REAL_VOICE_DECODED: (REAL_VOICE_DECODED,),
}
"""The names that sets of recordings have in an evaluation, by the name that the page gives them."""


@dataclass(frozen=True)
class Comparison:
    """A score of a run after training, with those before and of the real voice where they were judged.

    Attributes:
        key: the name of the score in the evaluation, such as "wer".
        recordings: the scores of the real voice, and of the same voice through the codec, by these names.
    """

    key: str
    before: Score | None
    after: Score
    recordings: Mapping[str, Score]

    @property
    def measure(self) -> Measure:
        """How the score is shown."""
        return MEASURES[self.key]

    @property
    def verdict(self) -> str:
        """`BETTER`, `WORSE`, `SAME` or `UNCLEAR`; empty without a score from before.

        A difference is unclear if the paired test finds that it may be chance or, without a test, if the score from
        before lies within the 95% interval of the score from after.
        """
        if self.before is None:
            return ""
        if self.measure.show(self.before.value) == self.measure.show(self.after.value):
            return SAME
        if self._may_be_chance(self.before.value):
            return UNCLEAR
        return BETTER if (self.after.value - self.before.value) * self.measure.better > 0 else WORSE

    def _may_be_chance(self, before: float) -> bool:
        if self.after.p is not None:
            return self.after.p >= SIGNIFICANT_BELOW
        low, high = self.after.low, self.after.high
        return low is not None and high is not None and low <= before <= high


@dataclass(frozen=True)
class Bar:
    """Where scores lie on the bar of a tile, in percent. The better end is to the right."""

    before: float
    after: float
    recordings: Sequence[float]


@dataclass(frozen=True)
class ScoreTable:
    """A table of sets of clips by measures. A row is (run, set, one cell for each measure)."""

    titles: list[str]
    rows: list[tuple[str, str, list[str]]]
    meanings: list[str]


def compare_scores(run: RunContents) -> list[Comparison]:
    """Compare each score that the clips from after training have."""
    sets = {one.name: one.scores for one in list_judged_sets(run)}
    found = []
    for key, score in sets.get(AFTER, {}).items():
        if key in MEASURES:
            recordings = {
                shown: sets[name][key]
                for shown, names in NAMES_OF_RECORDINGS.items()
                for name in names
                if key in sets.get(name, {})
            }
            found.append(Comparison(key, sets.get(BEFORE, {}).get(key), score, recordings))
    return found


def draw_bar(comparison: Comparison) -> Bar | None:
    """Place the scores on a bar, or return None if there are fewer than two different ones."""
    if comparison.before is None or not comparison.recordings or not comparison.measure.better:
        return None
    recordings = [score.value for score in comparison.recordings.values()]
    values = [comparison.before.value, comparison.after.value, *recordings]
    worst, best = sorted((min(values), max(values)), reverse=comparison.measure.better < 0)
    if worst == best:
        return None
    before, after, *others = (100 * (value - worst) / (best - worst) for value in values)
    return Bar(before, after, others)


def build_table(runs: Sequence[RunContents]) -> ScoreTable | None:
    """List every judged set, or return None if there is none. An unknown measure is shown under its own name."""
    judged = [(run.name, one.name, one.scores) for run in runs for one in list_judged_sets(run)]
    found = {key for _, _, scores in judged for key in scores}
    if not found:
        return None
    keys = [*(key for key in MEASURES if key in found), *sorted(found - set(MEASURES))]
    measures = [_find_measure(key) for key in keys]
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
    return measure.show_with_interval(score)


def _find_measure(key: str) -> Measure:
    """Return the measure of a score. That of one language has the language in its title."""
    if key in MEASURES:
        return MEASURES[key]
    name, language = split_language(key)
    if language is not None and name in MEASURES:
        return replace(MEASURES[name], title=f"{MEASURES[name].title}, {language}", meaning="")
    return Measure(key, NumberStyle(4), 0)


def find_loss_ends(run: RunContents, key: str) -> tuple[tuple[int, float], tuple[int, float]] | None:
    """Return (step, loss) of the first and the last finite loss, or None if fewer than two were logged."""
    columns = run.logs.value or {}
    pairs = zip(columns.get("step", []), columns.get(key, []), strict=False)
    losses = [(int(step), loss) for step, loss in pairs if is_number(step) and is_number(loss)]
    return (losses[0], losses[-1]) if len(losses) > 1 else None
