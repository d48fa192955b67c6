"""What the demo found: scores of each set of clips, as a table, ``summary.json`` and a page to listen with."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from higgs_trainer.audio.files import write_audio
from higgs_trainer.evaluation.evaluation_file import JudgedClip, JudgedSet, write_evaluation
from higgs_trainer.evaluation.judges import SpeechScores, Transcriber, score_speech
from higgs_trainer.files import write_json
from higgs_trainer.report.run_page import write_report
from higgs_trainer.run_folder import DEMO_PAGE_FILE, name_clip
from higgs_trainer.speech.clip_folder import GeneratedCodes

DEMO_NOTE = (
    "The model and the codec behind these clips are tiny, so that they train on a laptop: the sound is robotic, the "
    "vocabulary is ten words, and the voices are synthetic. Listen for the words and for whose voice it is, not for "
    "quality. The real checkpoint speaks far better and takes a GPU."
)

WITH_THE_REAL_CHECKPOINT = {
    "The same recipe with the real checkpoint": "recipes/single_speaker.yaml, on a GPU",
    "model.name_or_path": "bosonai/higgs-audio-v2-generation-3B-base",
    "model.codec": "bosonai/higgs-audio-v2-tokenizer",
    "adapter": "r 16, attention+audio_ffn, without modules_to_save",
}


@dataclass(frozen=True)
class ClipSet:
    """Clips of one kind: "before", "after", "recordings". ``waveforms`` (S,) each, 24 kHz; ``stopped`` one a clip."""

    texts: Sequence[str]
    waveforms: Sequence[Tensor]
    stopped: Sequence[bool]

    @classmethod
    def of_generated(cls, spoken: Sequence[GeneratedCodes], waveforms: Sequence[Tensor]) -> "ClipSet":
        """What a model said."""
        return cls([clip.text for clip in spoken], waveforms, [clip.stopped for clip in spoken])

    @classmethod
    def of_recordings(cls, texts: Sequence[str], waveforms: Sequence[Tensor]) -> "ClipSet":
        """What a person or another synthesizer said; it always stopped."""
        return cls(texts, waveforms, [True] * len(texts))


def judge(
    sets: Mapping[str, ClipSet], *, asr: Transcriber, reference_waveforms: Sequence[Tensor], console: Console
) -> dict[str, SpeechScores]:
    """Score every set by the same judges, with a progress bar."""
    scores = {}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("listening", total=sum(len(clips.texts) for clips in sets.values()))
        for name, clips in sets.items():
            scores[name] = score_speech(
                clips.texts,
                clips.waveforms,
                asr=asr,
                stopped=clips.stopped,
                reference_waveforms=reference_waveforms,
                on_done=lambda count: progress.advance(task, count),
            )
    return scores


def build_table(scores: Mapping[str, SpeechScores]) -> Table:
    """The scores, a line for each set."""
    table = Table(
        "",
        "word error rate",
        "homophones forgiven",
        "similarity to the voice",
        "stopped by itself",
        "clips",
        box=None,
    )
    for name, score in scores.items():
        similarity = "" if score.similarity is None else f"{score.similarity:.3f}"
        table.add_row(
            name,
            f"{score.wer:.1%}",
            f"{score.wer_homophones_forgiven:.1%}",
            similarity,
            f"{score.stopped_share:.0%}",
            str(score.n),
        )
    return table


def print_outcome(scores: Mapping[str, SpeechScores], page: Path) -> None:
    """The table, and where to listen, on stdout."""
    console = Console() if sys.stdout.isatty() else Console(width=160)  # a file is not folded at 80 columns
    console.print(build_table(scores))
    console.print(f"Listen: {page}", soft_wrap=True)


def write_summary(path: Path, figures: Mapping[str, Any]) -> None:
    """``summary.json``: one flat object."""
    write_json(path, figures)


def write_page(
    output: Path,
    run: Path,
    title: str,
    sets: Mapping[str, ClipSet],
    scores: Mapping[str, SpeechScores],
    limits: Mapping[str, int],
) -> Path:
    """Write ``evaluation.json`` into the run's folder, and the run's page into ``output``; returns the page's path.

    What the model says comes first, then the recordings; of some sets only the first clips. Clips that no verb has
    written yet are written to ``wav``, beside the others.
    """
    judged = []
    for name, clips in sorted(sets.items(), key=lambda item: item[0] not in ("before", "after")):
        folder = output / "wav" / name.replace(" ", "-")
        heard = zip(clips.texts, clips.waveforms, scores[name].transcripts, clips.stopped, strict=True)
        shown = []
        for number, (text, waveform_S, transcript, stopped) in enumerate(islice(heard, limits.get(name))):
            audio = folder / name_clip(number)
            if not audio.exists():
                write_audio(audio, waveform_S)
            shown.append(JudgedClip(text, audio, transcript, stopped))
        judged.append(JudgedSet(name, _list_scores(scores[name]), shown))
    write_evaluation(run, judged)
    page = output / DEMO_PAGE_FILE
    write_report([run], page, title=title, note=DEMO_NOTE, facts=WITH_THE_REAL_CHECKPOINT)
    return page


def _list_scores(scores: SpeechScores) -> dict[str, float | None]:
    return {name: value for name, value in asdict(scores).items() if name != "transcripts"}
