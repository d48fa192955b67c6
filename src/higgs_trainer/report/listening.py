"""Find the clips of a run: each sentence as reference, before and after training, and as a real recording."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from higgs_trainer.errors import UserError
from higgs_trainer.evaluation.evaluation_folder import JudgedSet
from higgs_trainer.files import check_inside
from higgs_trainer.report.part import MOST_NAMED, read_lines
from higgs_trainer.report.runs import RunContents
from higgs_trainer.run_folder import (
    AFTER,
    BEFORE,
    CLIP_INDEX_FILE,
    RECORDINGS_FOLDER,
    SAMPLES_FOLDER,
    list_samples,
)
from higgs_trainer.speech.real_recordings import REFERENCE as REFERENCE_KIND

MOST_CLIP_BYTES = 100_000_000
MOST_CHARACTERS = 2_000

REFERENCE, RECORDING = "reference", "recording, through the codec"


@dataclass(frozen=True)
class ClipFile:
    """A clip on disk.

    Attributes:
        transcript: what a recogniser heard, or None.
        says: the words of a reference, which are not those of the sentence that it is shown with.
        is_right: whether the recogniser heard every word of the sentence and no other, or None.
    """

    audio: Path
    transcript: str | None = None
    stopped: bool = True
    says: str | None = None
    is_right: bool | None = None


RunColumn = tuple[str, str]
"""The name of a run and a column of the page, such as ("first", "before")."""


@dataclass
class SpokenSentence:
    """A text with its clips by (run, column). ``during_training`` are those of the steps between first and last."""

    text: str
    clips: dict[RunColumn, ClipFile] = field(default_factory=dict)
    during_training: dict[RunColumn, ClipFile] = field(default_factory=dict)


@dataclass(frozen=True)
class _PlacedClip:
    """A clip of a run, with the sentence and the column in which it is shown."""

    text: str
    column: str
    clip: ClipFile


def find_sentences(runs: Sequence[RunContents]) -> tuple[list[SpokenSentence], list[str]]:
    """Return every sentence that has clips in these runs, and notes on what is missing.

    A judged clip is preferred to a sample of the same run and column.
    """
    sentences: dict[str, SpokenSentence] = {}
    notes: list[str] = []
    for run in runs:
        left_out: list[str] = []
        found = list(_list_clips(run, notes))
        if not found:
            notes.append(
                f"{run.name} has no clips: its recipe does not set samples.texts, and it was not evaluated."
            )
        for placed in found:
            try:
                check_inside(run.folder, placed.clip.audio, most_bytes=MOST_CLIP_BYTES)
            except UserError as error:
                left_out.append(str(error))
                continue
            sentence = sentences.setdefault(placed.text, SpokenSentence(placed.text))
            is_between = placed.column.startswith("step ")
            clips = sentence.during_training if is_between else sentence.clips
            clips.setdefault((run.name, placed.column), placed.clip)
        notes += left_out[:MOST_NAMED]
        if len(left_out) > MOST_NAMED:
            notes.append(
                f"{run.name}: {len(left_out) - MOST_NAMED} further clips are left out for such reasons."
            )
    return list(sentences.values()), notes


def list_judged_sets(run: RunContents) -> Sequence[JudgedSet]:
    """Return the sets of clips that were judged, or [] if the run was not evaluated."""
    return run.evaluation.value.sets if run.evaluation.value is not None else []


def _list_clips(run: RunContents, notes: list[str]) -> Iterator[_PlacedClip]:
    """List every clip of a run in the order of the page: the reference first, the recording last."""
    samples = list(_list_samples(run, notes))
    references, recorded = _list_recordings(run, notes) if samples else ([], [])
    yield from (*references, *_list_judged(run), *samples, *recorded)


def _list_samples(run: RunContents, notes: list[str]) -> Iterator[_PlacedClip]:
    """List the samples. Step 0 is "before"; "after" is the last step, or the best one if its weights are the result."""
    folders = list_samples(run.folder)
    last = run.best_step if run.best_step in folders else max(folders, default=0)
    for step in folders:
        column = BEFORE if step == 0 else AFTER if step == last else f"step {step}"
        lines = read_lines(
            run.folder,
            f"{SAMPLES_FOLDER}/{folders[step].name}/{CLIP_INDEX_FILE}",
            otherwise="the samples of that step are not shown",
        )
        notes += [lines.note] if lines.note else []
        for line in lines.value or []:
            if (clip := _read_clip(line, folders[step])) is not None:
                yield _PlacedClip(_cut(line["text"]), column, clip)


def _list_recordings(run: RunContents, notes: list[str]) -> tuple[list[_PlacedClip], list[_PlacedClip]]:
    """Return the references and the real recordings, each with the sentence that it belongs to."""
    references: list[_PlacedClip] = []
    recorded: list[_PlacedClip] = []
    folder = run.folder / RECORDINGS_FOLDER
    lines = read_lines(
        run.folder,
        f"{RECORDINGS_FOLDER}/{CLIP_INDEX_FILE}",
        otherwise="the page cannot play the references and recordings without it",
    )
    notes += [f"{run.name}: {lines.note}"] if lines.note else []
    for line in lines.value or []:
        sentence, clip = line.get("sentence"), _read_clip(line | {"text": ""}, folder)
        if clip is None or not isinstance(sentence, str):
            continue
        if line.get("kind") == REFERENCE_KIND:
            number = 1 + sum(one.text == sentence for one in references)
            column = REFERENCE if number == 1 else f"{REFERENCE} {number}"
            words = line.get("text")
            file = ClipFile(clip.audio, says=_cut(words) if isinstance(words, str) else None)
            references.append(_PlacedClip(_cut(sentence), column, file))
        else:
            recorded.append(_PlacedClip(_cut(sentence), RECORDING, clip))
    return references, recorded


def _list_judged(run: RunContents) -> Iterator[_PlacedClip]:
    for judged in list_judged_sets(run):
        for clip in judged.clips:
            if clip.audio is not None:
                heard = None if clip.transcript is None else _cut(clip.transcript)
                file = ClipFile(clip.audio, heard, clip.stopped, is_right=clip.is_right)
                yield _PlacedClip(_cut(clip.text), _cut(judged.name), file)


def _read_clip(line: dict[str, Any], folder: Path) -> ClipFile | None:
    text, audio, transcript = line.get("text"), line.get("audio"), line.get("transcript")
    if not isinstance(text, str) or not isinstance(audio, str):
        return None
    heard = _cut(transcript) if isinstance(transcript, str) else None
    return ClipFile(folder / audio, heard, bool(line.get("stopped", True)))


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
