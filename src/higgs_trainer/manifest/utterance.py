"""A manifest row that is right: what was said, by whom, in which recording, and what stands before it in the prompt."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

Task = Literal[
    "single_speaker",
    "multi_speaker",
    "zero_shot_cloning",
    "multi_speaker_cloning",
    "reference_in_system",
    "several_turns",
]
TASKS: tuple[Task, ...] = get_args(Task)


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording that stands before the target in the prompt: a reference, or an earlier turn.

    ``text`` is None only in a reference of the system message, where the prompt does not say it.
    """

    audio: Path
    text: str | None
    speaker: str | None = None


@dataclass(frozen=True, slots=True)
class Utterance:
    """A manifest row. `utterance_id` is the audio file's stem and the row's number: `hello-00017`.

    ``text_changes`` names what `clean_text` did to the row's texts. ``file`` and ``line`` say where the row stands.
    """

    utterance_id: str
    audio: Path
    text: str
    speaker: str | None
    language: str | None
    scene: str | None
    references: tuple[Clip, ...]
    turns: tuple[Clip, ...]
    task: Task
    reward: float | None
    text_changes: tuple[str, ...]
    file: Path
    line: int

    @property
    def clips(self) -> tuple[Clip, ...]:
        """The clips that stand before the target, in the prompt's order."""
        return self.references + self.turns


def dump_utterance(utterance: Utterance) -> str:
    """As JSON, for `load_utterance`."""
    row = {field.name: getattr(utterance, field.name) for field in fields(utterance)}
    return json.dumps(row, default=_dump_field)


def _dump_field(value: object) -> object:
    return asdict(value) if isinstance(value, Clip) else str(value)


def load_utterance(text: str) -> Utterance:
    """What `dump_utterance` wrote."""
    row: dict[str, Any] = json.loads(text)
    for name in ("audio", "file"):
        row[name] = Path(row[name])
    for name in ("references", "turns"):
        row[name] = tuple(Clip(Path(clip["audio"]), clip["text"], clip["speaker"]) for clip in row[name])
    row["text_changes"] = tuple(row["text_changes"])
    return Utterance(**row)
