"""References drawn from the same speaker's other clips, so that a corpus without references can train cloning."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from higgs_trainer.errors import Problem
from higgs_trainer.manifest.audio_paths import is_same_content
from higgs_trainer.manifest.utterance import Clip, Utterance


def pair_references(utterances: Sequence[Utterance], *, seed: int) -> tuple[list[Utterance], list[Problem]]:
    """Give each single-speaker utterance one other clip of its speaker as its reference.

    The draw depends on the seed, the utterance and its speaker's clips, not on the order of the manifest. Rows that
    have references or earlier turns, and dialogues, keep what they have.

    Returns:
        the utterances, and the problems of those that have no speaker, or whose speaker has no other recording.
    """
    clips_of: dict[str, list[Utterance]] = defaultdict(list)
    place_of: dict[str, int] = {}
    for utterance in sorted(utterances, key=lambda utterance: (str(utterance.audio), utterance.utterance_id)):
        if utterance.speaker is not None and utterance.task == "single_speaker":
            place_of[utterance.utterance_id] = len(clips_of[utterance.speaker])
            clips_of[utterance.speaker].append(utterance)
    paired: list[Utterance] = []
    problems: list[Problem] = []
    for utterance in utterances:
        if utterance.task != "single_speaker":
            paired.append(utterance)
            continue
        if utterance.speaker is None:
            problems.append(
                _describe(utterance, '"speaker" is missing, so no reference can be drawn', "Add the speaker.")
            )
            continue
        place = place_of[utterance.utterance_id]
        other = _draw_other(utterance, place, clips_of[utterance.speaker], seed)
        if other is None:
            what = f'the speaker "{utterance.speaker}" has no other recording to use as a reference'
            problems.append(
                _describe(utterance, what, 'Add a recording, or give the row "ref_audio" and "ref_text".')
            )
        else:
            reference = Clip(other.recording, other.text, other.speaker)
            paired.append(replace(utterance, references=(reference,), task="zero_shot_cloning"))
    return paired, problems


def _draw_other(utterance: Utterance, place: int, clips: Sequence[Utterance], seed: int) -> Utterance | None:
    """One of the clips, each as likely as the next, that is not the utterance's own recording, nor a copy of it.

    ``place`` is where the utterance itself stands among the clips.
    """
    others = len(clips) - 1
    if not others:
        return None
    first = random.Random(f"{seed}:{utterance.recording.name}:{utterance.text}").randrange(others)
    for i in range(others):
        other = clips[(place + 1 + (first + i) % others) % len(clips)]
        if not is_same_content(utterance.recording, other.recording):
            return other
    return None


def _describe(utterance: Utterance, what: str, what_to_do: str) -> Problem:
    return Problem(utterance.file, utterance.line, what, what_to_do)
