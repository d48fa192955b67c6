"""Report the outcome of the demo: an evaluation of its clips, a table, and a page that plays them."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from higgs_trainer.audio.files import SAMPLE_RATE_HZ, write_audio
from higgs_trainer.evaluation.evaluation_folder import write_evaluation
from higgs_trainer.evaluation.figures import build_report, compute_differences, compute_figures
from higgs_trainer.evaluation.judging import ClipToJudge, JudgedClip, Judges, judge_clips_with_progress
from higgs_trainer.evaluation.recogniser import Recogniser
from higgs_trainer.evaluation.sentences import EvaluationSentence
from higgs_trainer.evaluation.speaker_encoder import load_speaker_encoder
from higgs_trainer.evaluation.tables import ROWS
from higgs_trainer.evaluation.voices import embed_one_voice
from higgs_trainer.report.run_page import NextStep, write_report
from higgs_trainer.run_folder import AFTER, BEFORE, DEMO_PAGE_FILE, EVALUATION_FOLDER, name_clip
from higgs_trainer.speech.generate import Request
from higgs_trainer.terminal import open_console

DEMO_NOTE = (
    "The model and the codec that made these clips are tiny, so that they train on a laptop: the sound is robotic, the "
    "vocabulary is ten words, and the voices are synthetic. Listen for the words and the voice, not for quality. The "
    "real checkpoint sounds far better and needs a GPU."
)

WITH_THE_REAL_CHECKPOINT = NextStep(
    "The same with your recordings and the released checkpoint, on a GPU",
    "higgs-trainer recipes single_speaker\n"
    "higgs-trainer prepare train.jsonl -o prepared/train --recipe single_speaker.yaml\n"
    "higgs-trainer prepare held_out.jsonl -o prepared/held_out --recipe single_speaker.yaml\n"
    "higgs-trainer train single_speaker.yaml",
    "https://huggingface.co/bosonai/higgs-tts-2-3b-base",
)

CLIPS_SHOWN = 5
"""The number of recordings of each set on the page."""

FIGURES_SHOWN = ("wer", "wer_homophones_forgiven", "similarity", "stopped")
"""The columns of the table."""


@dataclass(frozen=True)
class ClipSet:
    """Clips of one kind, such as "before", "after" or recordings, and their texts."""

    texts: Sequence[str]
    clips: Sequence[ClipToJudge]


def write_clip_set(texts: Sequence[str], waveforms: Sequence[Tensor], folder: Path) -> ClipSet:
    """Write the first `CLIPS_SHOWN` recordings (S,) as WAV files, which the page plays. Return all as a set."""
    clips = [ClipToJudge(waveform_S) for waveform_S in waveforms]
    for number, clip in enumerate(clips[:CLIPS_SHOWN]):
        audio = folder / name_clip(number)
        write_audio(audio, clip.waveform_S)
        clips[number] = replace(clip, audio=str(audio))
    return ClipSet(texts, clips)


def evaluate_sets(
    sets: Mapping[str, ClipSet], run: Path, *, recogniser: Recogniser, voice: Sequence[Tensor]
) -> dict[str, Any]:
    """Judge all sets and write the evaluation into the run folder.

    Numbers are compared digit by digit, because the demo's sentences are digits.

    Args:
        sets: the sets by name. If the first two are "before" and "after", they are compared.
        voice: recordings (S,) of the voice that all clips should have.

    Returns:
        The content of ``figures.json``.
    """
    folder = run / EVALUATION_FOLDER
    sets = {name: _copy_clips(one, folder / name.replace(" ", "-")) for name, one in sets.items()}
    judges = Judges(recogniser, load_speaker_encoder(), None, SAMPLE_RATE_HZ, digits_spelled=True)
    rows: dict[str, list[JudgedClip]] = {}
    for name, one in sets.items():
        sentences = [EvaluationSentence(Request(text)) for text in one.texts]
        voices = embed_one_voice(voice, judges.encoder, SAMPLE_RATE_HZ, num_sentences=len(sentences))
        rows[name] = judge_clips_with_progress(name, sentences, one.clips, voices, judges)
    figures = [
        compute_figures(judged, role=name if name in (BEFORE, AFTER) else None)
        for name, judged in rows.items()
    ]
    is_compared = list(rows)[:2] == [BEFORE, AFTER]
    differences = compute_differences(rows[BEFORE], rows[AFTER]) if is_compared else None
    report = build_report(figures, differences, recogniser=recogniser.source.name, digits_spelled=True)
    write_evaluation(folder, report, [row for judged in rows.values() for row in judged])
    return report


def _copy_clips(one: ClipSet, folder: Path) -> ClipSet:
    """Copy the files of a set into ``folder``, because the page of a run plays no file from outside the run."""
    clips = []
    for clip in one.clips:
        if clip.audio is not None:
            folder.mkdir(parents=True, exist_ok=True)
            clip = replace(clip, audio=str(shutil.copy(clip.audio, folder)))
        clips.append(clip)
    return ClipSet(one.texts, clips)


def read_value(report: Mapping[str, Any], name: str, figure: str) -> float:
    """Return a figure of the set with this name."""
    (model,) = (model for model in report["models"] if model["model"] == name)
    return float(model[figure]["value"])


def build_table(report: Mapping[str, Any]) -> Table:
    """Build a table with a line for each set."""
    table = Table("", *(ROWS[name][0] for name in FIGURES_SHOWN), "clips", box=None)
    for model in report["models"]:
        shown = (ROWS[name][1].show(model[name]["value"]) for name in FIGURES_SHOWN)
        table.add_row(model["model"], *shown, str(model["clips"]))
    return table


def print_outcome(report: Mapping[str, Any], page: Path) -> None:
    """Print the table and the path of the page."""
    console = open_console()
    console.print(build_table(report))
    console.print(f"Listen: {page}", soft_wrap=True)


def write_page(output: Path, run: Path, title: str) -> Path:
    """Write the page of the run into ``output``, and return its path."""
    page = output / DEMO_PAGE_FILE
    write_report([run], page, title=title, note=DEMO_NOTE, next_step=WITH_THE_REAL_CHECKPOINT)
    return page
