"""The figures of an evaluation: rates and means over the judged clips of a model, and differences of two models."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from higgs_trainer.evaluation.judging import JudgedClip
from higgs_trainer.evaluation.normalized_text import describe_rules
from higgs_trainer.evaluation.precision import round_p
from higgs_trainer.evaluation.statistics import (
    FEWEST_UTTERANCES,
    MOST_SWAPPED_IN_FULL,
    RESAMPLES,
    Difference,
    Figure,
    Ratio,
    compare,
    compute_smallest_p,
    estimate,
)
from higgs_trainer.run_folder import EVALUATION_SCHEMA

TEST = (
    f"paired permutation of utterances, two-sided, all swaps up to {MOST_SWAPPED_IN_FULL} utterances and {RESAMPLES} "
    f"random ones beyond; intervals: percentile bootstrap over utterances, {RESAMPLES} resamples; none for fewer than "
    f"{FEWEST_UTTERANCES} utterances"
)


@dataclass(frozen=True)
class ModelFigures:
    """The figures of one model, by the names in `FIGURES`.

    Attributes:
        languages: how many clips are in each language.
        by_language: the error rates of each language, if there are several.
        role: "after" for the model of the run folder that the evaluation belongs to, "before" for its base model.
        num_clips: how many clips were judged.
        audio_seconds_per_second: how fast the model generated. None for recordings.
    """

    model: str
    figures: Mapping[str, Figure | None]
    num_clips: int
    languages: Mapping[str, int] = field(default_factory=dict)
    by_language: Mapping[str, Mapping[str, Figure | None]] = field(default_factory=dict)
    audio_seconds_per_second: float | None = None
    role: str | None = None


def _mean(name: str) -> Callable[[Sequence[JudgedClip]], Ratio]:
    def build_ratio(rows: Sequence[JudgedClip]) -> Ratio:
        return Ratio.of_values(_read_column(rows, name))

    return build_ratio


def _rate(errors: str, total: str) -> Callable[[Sequence[JudgedClip]], Ratio]:
    def build_ratio(rows: Sequence[JudgedClip]) -> Ratio:
        numerator = _read_column(rows, errors)
        return Ratio(numerator, np.where(np.isnan(numerator), np.nan, _read_column(rows, total)))

    return build_ratio


def _read_column(rows: Sequence[JudgedClip], name: str) -> np.ndarray:
    values = [getattr(row, name) for row in rows]
    return np.array([np.nan if value is None else float(value) for value in values])


FIGURES: Mapping[str, Callable[[Sequence[JudgedClip]], Ratio]] = {
    "wer": _rate("word_errors", "words"),
    "wer_homophones_forgiven": _rate("word_errors_homophones_forgiven", "words"),
    "cer": _rate("character_errors", "characters"),
    "similarity": _mean("similarity"),
    "similarity_to_others": _mean("similarity_to_others"),
    "quality": _mean("quality"),
    "stopped": _mean("stopped"),
    "length_ratio": _mean("length_ratio"),
}
"""Error rates are those of all utterances together. The other figures are means over utterances."""


ERROR_RATES = ("wer", "cer")
"""The figures that are also given for each language."""


def compute_figures(
    rows: Sequence[JudgedClip], *, speed: float | None = None, role: str | None = None, seed: int = 0
) -> ModelFigures:
    """Compute the figures of one model's rows, with their intervals."""
    figures = {name: estimate(build_ratio(rows), seed=seed) for name, build_ratio in FIGURES.items()}
    languages = Counter(row.language for row in rows)
    by_language = {}
    if len(languages) > 1:
        for language in sorted(languages):
            of_it = [row for row in rows if row.language == language]
            by_language[language] = {name: estimate(FIGURES[name](of_it), seed=seed) for name in ERROR_RATES}
    return ModelFigures(rows[0].model, figures, len(rows), languages, by_language, speed, role)


def compute_differences(
    first: Sequence[JudgedClip], second: Sequence[JudgedClip], *, seed: int = 0
) -> dict[str, Difference | None]:
    """Compute the second model's figures minus the first's, on the same sentences."""
    return {
        name: compare(build_ratio(first), build_ratio(second), seed=seed)
        for name, build_ratio in FIGURES.items()
    }


def _write_figures(figures: Mapping[str, Figure | None]) -> dict[str, Any]:
    return {name: None if figure is None else asdict(figure) for name, figure in figures.items()}


def _write_difference(found: Difference) -> dict[str, Any]:
    return asdict(found) | {"p": round_p(found.p, found.n), "smallest_p": compute_smallest_p(found.n)}


def build_report(
    models: Sequence[ModelFigures],
    differences: Mapping[str, Difference | None] | None,
    *,
    recogniser: str | None = None,
    digits_spelled: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Build the content of `figures.json`, as ``run_folder.py`` describes it.

    Args:
        recogniser: the name of the recogniser. Of a folder, only the last part is written. None: words were not judged.
    """
    if recogniser is not None and Path(recogniser).is_dir():
        recogniser = Path(recogniser).resolve().name
    return {
        "schema": EVALUATION_SCHEMA,
        "sentences": models[0].num_clips,
        "languages": dict(models[0].languages),
        "recogniser": recogniser,
        "seed": seed,
        "normaliser": describe_rules(digits_spelled=digits_spelled),
        "models": [
            {
                "model": one.model,
                "role": one.role,
                "clips": one.num_clips,
                **_write_figures(one.figures),
                "by_language": {
                    language: {"clips": one.languages[language], **_write_figures(figures)}
                    for language, figures in one.by_language.items()
                },
                "audio_seconds_per_second": one.audio_seconds_per_second,
            }
            for one in models
        ],
        "test": TEST,
        "second_minus_first": None
        if differences is None
        else {
            name: None if found is None else _write_difference(found) for name, found in differences.items()
        },
        "note": "",
    }
