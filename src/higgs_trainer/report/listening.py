"""Find the clips of a run: each sentence as reference, before and after training, and as a real recording."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
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
    REAL_VOICE,
    REAL_VOICE_DECODED,
    RECORDINGS,
    RECORDINGS_FOLDER,
    REFERENCE_KIND,
    SAMPLES_FOLDER,
    list_samples,
)

MOST_CLIP_BYTES = 100_000_000
MOST_CHARACTERS = 2_000

REFERENCE = "reference"

ORDER = (BEFORE, AFTER, "", REAL_VOICE, REAL_VOICE_DECODED, REFERENCE)
"""The order of the clips of a sentence. The empty name is that of any other."""


@dataclass(frozen=True)
class ClipFile:
    """A clip on disk.

    Attributes:
        transcript: what a recogniser heard, or None.
        says: the words of a reference or of another recording, if they are not those of the sentence.
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

    A judged clip is preferred to a sample of the same run and column. A sentence without a recording is given one with
    other words, if recordings of the real voice were judged.
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
    for run in runs:
        _lend_recordings(run.name, list(sentences.values()))
    for sentence in sentences.values():
        sentence.clips = dict(sorted(sentence.clips.items(), key=lambda item: _find_place(runs, *item[0])))
    return [one for one in sentences.values() if one.clips or one.during_training], notes


def _find_place(runs: Sequence[RunContents], run: str, column: str) -> tuple[int, int]:
    """Return the place of a clip on a card, by run and then by `ORDER`."""
    kind = REFERENCE if column.startswith(REFERENCE) else column
    return [one.name for one in runs].index(run), ORDER.index(kind if kind in ORDER else "")


def _lend_recordings(run: str, sentences: Sequence[SpokenSentence]) -> None:
    """Move recordings of sentences that no model spoke to the sentences that have no recording.

    Without a model's clip they are nothing to compare with. If there are fewer of them, they are used again.
    """
    columns = (REAL_VOICE, REAL_VOICE_DECODED)
    own = {
        number: {column for name, column in one.clips if name == run} for number, one in enumerate(sentences)
    }
    lenders = [sentences[number] for number, found in own.items() if found and found <= set(columns)]
    borrowers = [sentences[number] for number, found in own.items() if found and not found & set(columns)]
    if not borrowers:
        return
    for lender, borrower in zip(itertools.cycle(lenders), borrowers, strict=False):
        for column in columns:
            if (clip := lender.clips.get((run, column))) is not None:
                borrower.clips[run, column] = replace(clip, says=lender.text)
    for lender in lenders:
        lender.clips = {place: clip for place, clip in lender.clips.items() if place[0] != run}


def list_judged_sets(run: RunContents) -> Sequence[JudgedSet]:
    """Return the sets of clips that were judged, or [] if the run was not evaluated."""
    return run.evaluation.value.sets if run.evaluation.value is not None else []


def _list_clips(run: RunContents, notes: list[str]) -> Iterator[_PlacedClip]:
    """List every clip of a run. Of two clips for one place on the page, the first is shown."""
    samples = list(_list_samples(run, notes))
    recorded = _list_recordings(run, notes) if samples else []
    yield from (*_list_judged(run), *samples, *recorded)


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


def _list_recordings(run: RunContents, notes: list[str]) -> list[_PlacedClip]:
    """Return the references and the real recordings, each with the sentence that it belongs to."""
    placed: list[_PlacedClip] = []
    folder = run.folder / RECORDINGS_FOLDER
    lines = read_lines(
        run.folder,
        f"{RECORDINGS_FOLDER}/{CLIP_INDEX_FILE}",
        otherwise="the page cannot play the references and recordings without it",
    )
    notes += [f"{run.name}: {lines.note}"] if lines.note else []
    for line in lines.value or []:
        sentence, words, clip = (
            line.get("sentence"),
            line.get("text"),
            _read_clip(line | {"text": ""}, folder),
        )
        if clip is None or not isinstance(sentence, str):
            continue
        column = REAL_VOICE_DECODED
        if line.get("kind") == REFERENCE_KIND:
            number = 1 + sum(one.text == _cut(sentence) and one.column != column for one in placed)
            column = REFERENCE if number == 1 else f"{REFERENCE} {number}"
        says = _cut(words) if isinstance(words, str) and words != sentence else None
        placed.append(_PlacedClip(_cut(sentence), column, ClipFile(clip.audio, says=says)))
    return placed


def _list_judged(run: RunContents) -> Iterator[_PlacedClip]:
    for judged in list_judged_sets(run):
        for clip in judged.clips:
            if clip.audio is not None:
                heard = None if clip.transcript is None else _cut(clip.transcript)
                file = ClipFile(clip.audio, heard, clip.stopped, is_right=clip.is_right)
                name = REAL_VOICE if judged.name == RECORDINGS else _cut(judged.name)
                yield _PlacedClip(_cut(clip.text), name, file)


def _read_clip(line: dict[str, Any], folder: Path) -> ClipFile | None:
    text, audio, transcript = line.get("text"), line.get("audio"), line.get("transcript")
    if not isinstance(text, str) or not isinstance(audio, str):
        return None
    heard = _cut(transcript) if isinstance(transcript, str) else None
    return ClipFile(folder / audio, heard, bool(line.get("stopped", True)))


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
