"""A valid row: what is said, by whom, in which recording, and what precedes it in the prompt."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from higgs_trainer.manifest.text import normalize_words

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
    """A recording that precedes the target in the prompt: a reference or an earlier turn.

    ``text`` is None only for a reference in the system message, where the prompt does not quote it.
    """

    audio: Path
    text: str | None
    speaker: str | None = None


def find_conflicting_clip(clips: Sequence[Clip]) -> int | None:
    """Return the index of a clip that has the recording of an earlier clip, but other words. None if there is none."""
    words_of: dict[Path, str] = {}
    for index, clip in enumerate(clips):
        if clip.text is not None:
            words = normalize_words(clip.text)
            if words_of.setdefault(clip.audio, words) != words:
                return index
    return None


@dataclass(frozen=True)
class Voice:
    """The voice to speak with: a scene in words, reference recordings, both, or neither (the model's own voice).

    Several references are [SPEAKER0], [SPEAKER1] and so on of a dialogue. With ``references_in_system`` they follow
    the scene in the system message instead of preceding the text as earlier turns.
    """

    scene: str | None = None
    references: tuple[Clip, ...] = ()
    references_in_system: bool = False


@dataclass(frozen=True, slots=True)
class Utterance:
    """A valid row of a manifest, or a sentence to speak.

    Attributes:
        audio: the recording of ``text``. None only in rows that were read without ``audio_required``.
        utterance_id: the stem of the audio file and the number of the row, such as ``hello-00017``.
        seed: how speech is sampled for this row; None for the seed of the command. Training does not use it.
        text_changes: which changes `clean_text` made to the texts of the row.
        file: the file that contains the row, at ``line``.
    """

    text: str
    audio: Path | None = None
    utterance_id: str = ""
    speaker: str | None = None
    language: str | None = None
    scene: str | None = None
    references: tuple[Clip, ...] = ()
    turns: tuple[Clip, ...] = ()
    task: Task = "single_speaker"
    reward: float | None = None
    seed: int | None = None
    text_changes: tuple[str, ...] = ()
    file: Path = Path()
    line: int = 0

    @property
    def recording(self) -> Path:
        """``audio`` of a row that was read with ``audio_required``."""
        if self.audio is None:
            raise ValueError(f"{self.file}:{self.line}: the row has no audio")
        return self.audio

    @property
    def clips(self) -> tuple[Clip, ...]:
        """The clips that precede the target, in the order of the prompt."""
        return self.references + self.turns

    @property
    def voice(self) -> Voice:
        """The voice that the row asks for."""
        return Voice(self.scene, self.references, self.task == "reference_in_system")


def dump_utterance(utterance: Utterance) -> str:
    """Serialize to JSON for `load_utterance`."""
    row = {field.name: getattr(utterance, field.name) for field in fields(utterance)}
    return json.dumps(row, default=_dump_field)


def _dump_field(value: object) -> object:
    return asdict(value) if isinstance(value, Clip) else str(value)


def load_utterance(text: str) -> Utterance:
    """Deserialize what `dump_utterance` wrote."""
    row: dict[str, Any] = json.loads(text)
    for name in ("audio", "file"):
        row[name] = None if row[name] is None else Path(row[name])
    for name in ("references", "turns"):
        row[name] = tuple(Clip(Path(clip["audio"]), clip["text"], clip["speaker"]) for clip in row[name])
    row["text_changes"] = tuple(row["text_changes"])
    return Utterance(**row)
