"""Which task a row is, and whether the row has what the task needs. What the model is told in each: docs/tasks.md."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from higgs_trainer.errors import name_the_near_one
from higgs_trainer.manifest.text import find_speakers
from higgs_trainer.manifest.utterance import TASKS, Clip, Task


def derive_task(text: str, num_references: int, num_turns: int) -> Task:
    """The task that a row's fields speak of. Only `reference_in_system` must be named."""
    if num_turns:
        return "several_turns"
    if num_references:
        return "zero_shot_cloning" if num_references == 1 else "multi_speaker_cloning"
    return "multi_speaker" if len(find_speakers(text)) > 1 else "single_speaker"


def choose_task(named: object, derived: Task) -> Task:
    """The row's task: the derived one, unless the references are to stand in the system message."""
    return "reference_in_system" if named == "reference_in_system" else derived


def find_task_problems(
    fields: Mapping[str, Any], derived: Task, text: str, references: Sequence[Clip]
) -> Iterator[tuple[str, str]]:
    """(what is wrong, what to do) where the task that is named is another, or lacks something."""
    yield from _find_speaker_problems(text, references)
    named = fields.get("task")
    if named is None or named == derived or not isinstance(named, str):
        return
    if named == "reference_in_system":
        if fields.get("references") is None and fields.get("ref_audio") is None:
            yield "the task is 'reference_in_system', but there is no reference", "give 'ref_audio'"
        if fields.get("scene") is None:
            yield (
                "the task is 'reference_in_system', but there is no 'scene'",
                "the chat template lays speakers out behind a scene: describe one, such as 'A quiet room.'",
            )
    elif named in TASKS:
        yield (
            f"the task is named {named!r}, but the row's fields make it {derived!r}",
            "leave 'task' out, or give what that task needs (docs/tasks.md)",
        )
    else:
        yield f"unknown task {named!r}", name_the_near_one(named, TASKS)


def _find_speaker_problems(text: str, references: Sequence[Clip]) -> Iterator[tuple[str, str]]:
    if unknown := [number for number in find_speakers(text) if references and number >= len(references)]:
        count = "1 reference" if len(references) == 1 else f"{len(references)} references"
        yield (
            f"'text' has [SPEAKER{unknown[0]}], with only {count}",
            "the first reference is [SPEAKER0]: give one for each speaker, in that order",
        )
    if len(references) > 1 and any(find_speakers(clip.text or "") for clip in references):
        yield "a reference's text has a [SPEAKER] tag", "leave it out: the reference's place gives it one"
