"""Derive the task of a row, and check that the row has what the task needs. docs/tasks.md lists the prompts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from higgs_trainer.errors import shorten, suggest_name
from higgs_trainer.manifest.text import find_speakers
from higgs_trainer.manifest.utterance import TASKS, Clip, Task

NEEDS: Mapping[str, str] = {
    "single_speaker": "no reference, no turns, and no tag of a second speaker",
    "multi_speaker": "no reference and no turns, and the tags of two speakers in its text",
    "zero_shot_cloning": "one reference and no turns",
    "multi_speaker_cloning": "several references and no turns",
    "several_turns": "turns",
}
"""What a row of each task has. `reference_in_system` has checks of its own."""


def derive_task(text: str, num_references: int, num_turns: int) -> Task:
    """Derive the task from the fields of a row. Only `reference_in_system` must be named."""
    if num_turns:
        return "several_turns"
    if num_references:
        return "zero_shot_cloning" if num_references == 1 else "multi_speaker_cloning"
    return "multi_speaker" if len(find_speakers(text)) > 1 else "single_speaker"


def choose_task(named: object, derived: Task) -> Task:
    """Return the derived task, unless the row names `reference_in_system`."""
    return "reference_in_system" if named == "reference_in_system" else derived


def find_task_problems(
    fields: Mapping[str, Any], derived: Task, text: str, references: Sequence[Clip]
) -> Iterator[tuple[str, str]]:
    """Yield (problem, remedy) if the named task is not the derived one, or if the task lacks a field."""
    yield from _find_speaker_problems(text, references)
    named = fields.get("task")
    if named is None or named == derived or not isinstance(named, str):
        return
    if named == "reference_in_system":
        if fields.get("references") is None and fields.get("ref_audio") is None:
            yield '"task" is "reference_in_system", but the row has no reference', 'Add "ref_audio".'
        if fields.get("scene") is None:
            yield (
                '"task" is "reference_in_system", but the row has no "scene"',
                'Describe a scene, such as "A quiet room.": the chat template puts the references after it.',
            )
    elif named in TASKS:
        yield (
            f'"task" is "{named}", but the fields of the row make it "{derived}"',
            f'Remove "task", or give the row {NEEDS[named]}.',
        )
    else:
        yield f'unknown task "{shorten(named)}"', suggest_name(named, TASKS)


def _find_speaker_problems(text: str, references: Sequence[Clip]) -> Iterator[tuple[str, str]]:
    if unknown := [number for number in find_speakers(text) if references and number >= len(references)]:
        count = "1 reference" if len(references) == 1 else f"{len(references)} references"
        yield (
            f'"text" has the tag [SPEAKER{unknown[0]}], but the row has only {count}',
            "Give one reference for each speaker: the first is [SPEAKER0].",
        )
    if len(references) > 1 and any(find_speakers(clip.text or "") for clip in references):
        yield (
            "the text of a reference has a [SPEAKER] tag",
            "Remove the tag: the order of the references sets the speakers.",
        )
