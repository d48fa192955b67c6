"""The context of an utterance: what precedes its text in the prompt (a scene, reference clips, earlier turns)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class PromptClip:
    """A clip in the prompt: its text and its codes (F, K).

    ``text`` may be None for a reference in the system message, which does not quote it.
    """

    text: str | None
    codes_FK: Tensor


@dataclass(frozen=True)
class Context:
    """The part of the prompt before the text that the model speaks.

    Attributes:
        scene: a description of the scene.
        references: clips of the voices to imitate. The first is the voice of [SPEAKER0], the second of [SPEAKER1].
        turns: earlier turns of the conversation, oldest first.
        references_in_system: put the references into the system message, after the scene, instead of before the turns.
    """

    scene: str | None = None
    references: tuple[PromptClip, ...] = ()
    turns: tuple[PromptClip, ...] = ()
    references_in_system: bool = False

    @property
    def clips(self) -> tuple[PromptClip, ...]:
        """All clips in the order of the prompt."""
        return self.references + self.turns


def read_context(row: Mapping[str, Any]) -> Context:
    """Read the context of a prepared row."""
    clips = tuple(map(PromptClip, row["context_texts"], row["context_codes"]))
    return Context(
        scene=row["scene"],
        references=clips[: row["num_references"]],
        turns=clips[row["num_references"] :],
        references_in_system=row["task"] == "reference_in_system",
    )
