"""Models side by side: each speaks the same sentences, the same judges listen, figures come with their intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from higgs_trainer.audio.codec import load_codec
from higgs_trainer.audio.files import read_audio
from higgs_trainer.errors import UserError
from higgs_trainer.evaluation.judging import (
    JudgedClip,
    Judges,
    generate_sentences,
    judge_clips,
    take_recordings,
)
from higgs_trainer.evaluation.sentences import Sentence, build_sentences, embed_voices, read_sentences
from higgs_trainer.evaluation.statistics import RESAMPLES, Difference, Figure, Ratio, compare, estimate
from higgs_trainer.files import check_is_empty, write_json, write_json_lines
from higgs_trainer.manifest.utterance import Utterance, Voice
from higgs_trainer.run_folder import FIGURES_FILE, ROWS_FILE
from higgs_trainer.speech.generate import Request
from higgs_trainer.speech.sampling import Sampling
from higgs_trainer.speech.speech_model import SpeechModel, load_speech_model

RECORDINGS = "recordings"
"""In a model's place: the recordings of the sentences are judged."""

NORMALISER = "lower case, no punctuation, numbers digit by digit (higgs_trainer.evaluation.judges.normalize_transcript)"
TEST = f"paired permutation of utterances, {RESAMPLES} random swaps, two-sided; intervals: bootstrap of utterances"


@dataclass(frozen=True)
class ModelScores:
    """The figures of one model by name (`FIGURES`), and how many seconds of audio it speaks in a second; None for
    recordings."""

    model: str
    figures: Mapping[str, Figure | None]
    audio_seconds_per_second: float | None


def _column(name: str) -> Callable[[Sequence[JudgedClip]], Ratio]:
    def read(rows: Sequence[JudgedClip]) -> Ratio:
        values = [getattr(row, name) for row in rows]
        return Ratio.of_values(np.array([np.nan if value is None else float(value) for value in values]))

    return read


def _rate(errors: str, total: str) -> Callable[[Sequence[JudgedClip]], Ratio]:
    def read(rows: Sequence[JudgedClip]) -> Ratio:
        above, below = (
            np.array([getattr(row, name) for row in rows], dtype=float) for name in (errors, total)
        )
        return Ratio(above, below)

    return read


FIGURES: Mapping[str, Callable[[Sequence[JudgedClip]], Ratio]] = {
    "wer": _rate("word_errors", "words"),
    "cer": _rate("character_errors", "characters"),
    "similarity": _column("similarity"),
    "similarity_to_others": _column("similarity_to_others"),
    "quality": _column("quality"),
    "stopped": _column("stopped"),
    "length_ratio": _column("length_ratio"),
}
"""Error rates are of all utterances together; the rest are means."""


def summarize(rows: Sequence[JudgedClip], speed: float | None = None, *, seed: int = 0) -> ModelScores:
    """The figures of one model's rows."""
    figures = {name: estimate(read(rows), seed=seed) for name, read in FIGURES.items()}
    return ModelScores(rows[0].model, figures, speed)


def compare_rows(
    first: Sequence[JudgedClip], second: Sequence[JudgedClip], *, seed: int = 0
) -> dict[str, Difference | None]:
    """The second's figures minus the first's, on the same sentences."""
    return {name: compare(read(first), read(second), seed=seed) for name, read in FIGURES.items()}


def build_report(
    scores: Sequence[ModelScores], differences: Mapping[str, Difference | None] | None, **settings: Any
) -> dict[str, Any]:
    """All figures as one plain object, for JSON."""
    return {
        **settings,
        "normaliser": NORMALISER,
        "models": [
            {
                "model": score.model,
                **{
                    name: None if figure is None else asdict(figure) for name, figure in score.figures.items()
                },
                "audio_seconds_per_second": score.audio_seconds_per_second,
            }
            for score in scores
        ],
        "test": TEST,
        "second_minus_first": differences
        and {name: None if found is None else asdict(found) for name, found in differences.items()},
    }


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated: ``script`` or ``prepared``, a held-out set, and how it is spoken."""

    script: Sequence[Utterance] = ()
    prepared: Path | None = None
    voice: Voice = Voice()
    sampling: Sampling = Sampling()
    language: str = "en"
    codec: str | None = None
    dtype: str = "float32"
    device: str | None = None
    batch_size: int = 8

    def load_model(self, model: str) -> SpeechModel:
        """A model to speak with."""
        return load_speech_model(
            model,
            codec=self.codec,
            voice=self.voice,
            sampling=self.sampling,
            language=self.language,
            dtype=self.dtype,
            device=self.device,
        )

    def read_sentences(self, speaker: SpeechModel | None) -> list[Sentence]:
        """The sentences as ``speaker`` is asked for them; None: recordings are judged, and nobody is asked."""
        if self.prepared is None:
            build_request = (lambda line: Request(line.text)) if speaker is None else speaker.build_request
            return build_sentences(self.script, build_request, self.voice)
        if speaker is not None:
            return read_sentences(self.prepared, speaker.codec)
        if self.codec is None:
            raise UserError(
                f"{self.prepared} holds codes: name their codec with --codec, or give a model too"
            )
        return read_sentences(self.prepared, load_codec(self.codec))


def evaluate_models(
    models: Sequence[str],
    evaluation: Evaluation,
    judges: Judges,
    output: Path,
    *,
    other_voice: Sequence[Path] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Let one model or two speak, judge every clip, and write WAV files, a row a clip (`ROWS_FILE`) and the figures
    (`FIGURES_FILE`) into ``output``. Returns the figures, as `build_report` lays them out.

    Raises:
        UserError: ``output`` holds files already, or nothing can be judged; as `SpeechModel` and `Evaluation` raise.
    """
    check_is_empty(output)
    others = [read_audio(path) for path in other_voice]
    all_rows: list[list[JudgedClip]] = []
    scores: list[ModelScores] = []
    for number, (name, model) in enumerate(zip(_name_apart(models), models, strict=True), start=1):
        folder = output / f"{number}-{Path(model).name}"
        rows, speed = _judge_model(name, model, evaluation, judges, folder, others)
        all_rows.append(rows)
        scores.append(summarize(rows, speed, seed=seed))
    differences = compare_rows(*all_rows, seed=seed) if len(all_rows) == 2 else None
    report = build_report(scores, differences, sentences=len(all_rows[0]), seed=seed)
    write_json_lines(output / ROWS_FILE, (asdict(row) for rows in all_rows for row in rows))
    write_json(output / FIGURES_FILE, report)
    return report


def _judge_model(
    name: str, model: str, evaluation: Evaluation, judges: Judges, folder: Path, others: Sequence[Tensor]
) -> tuple[list[JudgedClip], float | None]:
    """The rows of one model, which is no longer in memory afterwards, and its speed."""
    speaker = None if model == RECORDINGS else evaluation.load_model(model)
    sentences = evaluation.read_sentences(speaker)
    if speaker is None:
        clips, speed = take_recordings(sentences), None
    else:
        if speaker.codec.sample_rate_hz != judges.sample_rate_hz:
            raise UserError(
                f"{model} speaks at {speaker.codec.sample_rate_hz} Hz, not {judges.sample_rate_hz}"
            )
        clips, speed = generate_sentences(speaker, sentences, folder, batch_size=evaluation.batch_size)
    voices = embed_voices(sentences, judges.encoder, judges.sample_rate_hz, other_voice=others)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("listening", total=len(clips))
        rows = judge_clips(name, sentences, clips, voices, judges, on_done=lambda: progress.advance(task))
    return rows, speed


def _name_apart(models: Sequence[str]) -> list[str]:
    """The models as they were named; one that is named twice is numbered."""
    return [
        model if models.count(model) == 1 else f"{model} ({models[: i + 1].count(model)})"
        for i, model in enumerate(models)
    ]


SHOWN = {
    "wer": ("word error rate", "{:.1%}"),
    "cer": ("character error rate", "{:.1%}"),
    "similarity": ("similarity to the voice", "{:.3f}"),
    "similarity_to_others": ("similarity to others", "{:.3f}"),
    "quality": ("predicted quality, 1 to 5", "{:.2f}"),
    "stopped": ("stopped by itself", "{:.0%}"),
    "length_ratio": ("length by the recording's", "{:.2f}"),
}


def build_tables(report: Mapping[str, Any]) -> list[Table]:
    """The report to read: a column a model, and the differences where there are two."""
    models = report["models"]
    table = Table("", *(model["model"] for model in models), box=None, title="value [95% interval]")
    for name, (words, pattern) in SHOWN.items():
        table.add_row(words, *(_show(model[name], pattern) for model in models))
    speeds = [model["audio_seconds_per_second"] for model in models]
    table.add_row(
        "seconds of audio a second", *("-" if speed is None else f"{speed:.1f}" for speed in speeds)
    )
    if report["second_minus_first"] is None:
        return [table]
    title = f"second minus first ({report['test']})"
    differences = Table("", "difference [95% interval]", "p", "sentences", box=None, title=title)
    for name, (words, pattern) in SHOWN.items():
        found = report["second_minus_first"][name]
        if found is not None:
            signed = pattern.replace(":", ":+")
            differences.add_row(words, _show(found, signed), f"{found['p']:.4f}", str(found["n"]))
    return [table, differences]


def _show(figure: Mapping[str, float] | None, pattern: str) -> str:
    if figure is None:
        return "-"
    value, low, high = (pattern.format(figure[part]) for part in ("value", "low", "high"))
    return rf"{value} \[{low}, {high}]"
