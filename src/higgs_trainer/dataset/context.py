"""What precedes the target text in the prompt: a scene, reference clips and earlier turns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PromptClip:
    """A clip in the prompt: codes (F, K) and what they say. ``text`` may be None in a reference of the system
    message, which does not quote it."""

    text: str | None
    codes_FK: Tensor


@dataclass(frozen=True)
class Context:
    """What the model is told before the text that it is to speak.

    ``references`` lend their voices: one, or the first for [SPEAKER0], the second for [SPEAKER1], and so on. They
    stand as earlier turns or, with ``references_in_system``, behind the scene in the system message. ``turns`` is what
    was said before, oldest first.
    """

    scene: str | None = None
    references: tuple[PromptClip, ...] = ()
    turns: tuple[PromptClip, ...] = ()
    references_in_system: bool = False

    @property
    def clips(self) -> tuple[PromptClip, ...]:
        """All clips, in the order in which they stand in the prompt."""
        return self.references + self.turns


def read_context(row: Mapping[str, Any], num_codebooks: int) -> Context:
    """What stands before a prepared row's text: its clips, which are stored end to end, told apart again."""
    codes_FK = reshape_codes(row["context_codes"], num_codebooks)
    frames = [int(num_frames) for num_frames in row["context_frames"]]
    clips = tuple(
        PromptClip(text, clip_FK)
        for text, clip_FK in zip(row["context_texts"], codes_FK.split(frames), strict=True)
    )
    return Context(
        scene=row["scene"],
        references=clips[: row["num_references"]],
        turns=clips[row["num_references"] :],
        references_in_system=row["task"] == "reference_in_system",
    )


def reshape_codes(codes: Any, num_codebooks: int) -> Tensor:
    return torch.as_tensor(codes, dtype=torch.long).reshape(-1, num_codebooks)
