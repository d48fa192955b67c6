"""References drawn from the same speaker's other clips, so that a corpus without references can train cloning."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from higgs_trainer.data.manifest import holds_the_same
from higgs_trainer.data.utterance import Clip, Utterance
from higgs_trainer.errors import Problem


def pair_references(utterances: Sequence[Utterance], *, seed: int) -> tuple[list[Utterance], list[Problem]]:
    """Give each single-speaker utterance one other clip of its speaker as its reference.

    The draw depends on the seed, the utterance and its speaker's clips, not on the order of the manifest. Rows that
    have references or earlier turns, and dialogues, keep what they have.

    Returns:
        the utterances, and the problems of those that have no speaker, or whose speaker has no other recording.
    """
    clips_of: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in sorted(utterances, key=lambda utterance: (str(utterance.audio), utterance.utterance_id)):
        if utterance.speaker is not None and utterance.task == "single_speaker":
            clips_of[utterance.speaker].append(utterance)
    paired: list[Utterance] = []
    problems: list[Problem] = []
    for utterance in utterances:
        if utterance.task != "single_speaker":
            paired.append(utterance)
        elif utterance.speaker is None:
            problems.append(
                _describe(utterance, "no 'speaker', so no reference can be drawn", "name the speaker")
            )
        elif (other := _draw_other(utterance, clips_of[utterance.speaker], seed)) is None:
            what = f"speaker {utterance.speaker!r} has no other recording to draw a reference from"
            problems.append(_describe(utterance, what, "add one, or give the row 'ref_audio' and 'ref_text'"))
        else:
            reference = Clip(other.audio, other.text, other.speaker)
            paired.append(replace(utterance, references=(reference,), task="zero_shot_cloning"))
    return paired, problems


def _draw_other(utterance: Utterance, clips: Sequence[Utterance], seed: int) -> Utterance | None:
    """One of the clips that is not the utterance's own recording, nor a copy of it."""
    first = random.Random(f"{seed}:{utterance.audio.name}:{utterance.text}").randrange(len(clips))
    for i in range(len(clips)):
        other = clips[(first + i) % len(clips)]
        if not holds_the_same(utterance.audio, other.audio):
            return other
    return None


def _describe(utterance: Utterance, what: str, what_to_do: str) -> Problem:
    return Problem(utterance.file, utterance.line, what, what_to_do)
