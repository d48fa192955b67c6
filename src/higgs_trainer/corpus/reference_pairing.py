"""Draw references from other recordings of the same speaker, to train cloning on data without references."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from higgs_trainer.errors import Problem
from higgs_trainer.manifest.audio_paths import is_same_content
from higgs_trainer.manifest.utterance import Clip, Utterance


def pair_references(utterances: Sequence[Utterance], *, seed: int) -> tuple[list[Utterance], list[Problem]]:
    """Give each single-speaker utterance another recording of its speaker as its reference.

    The draw depends on the seed, the utterance and the recordings of its speaker, but not on the order of the rows.
    Rows with references or earlier turns, and dialogues, stay unchanged.

    Returns:
        the utterances, and the problems of utterances without a speaker or without another recording of it.
    """
    by_speaker: dict[str, list[Utterance]] = defaultdict(list)
    position_of: dict[str, int] = {}
    for utterance in sorted(utterances, key=lambda utterance: (str(utterance.audio), utterance.utterance_id)):
        if utterance.speaker is not None and utterance.task == "single_speaker":
            position_of[utterance.utterance_id] = len(by_speaker[utterance.speaker])
            by_speaker[utterance.speaker].append(utterance)
    paired: list[Utterance] = []
    problems: list[Problem] = []
    for utterance in utterances:
        if utterance.task != "single_speaker":
            paired.append(utterance)
            continue
        if utterance.speaker is None:
            what, what_to_do = '"speaker" is missing, so no reference can be drawn', "Add the speaker."
            problems.append(Problem(utterance.file, utterance.line, what, what_to_do))
            continue
        position = position_of[utterance.utterance_id]
        other = _draw_other(utterance, position, by_speaker[utterance.speaker], seed)
        if other is None:
            what = f'the speaker "{utterance.speaker}" has no other recording to use as a reference'
            what_to_do = 'Add a recording, or give the row "ref_audio" and "ref_text".'
            problems.append(Problem(utterance.file, utterance.line, what, what_to_do))
        else:
            reference = Clip(other.recording, other.text, other.speaker)
            paired.append(replace(utterance, references=(reference,), task="zero_shot_cloning"))
    return paired, problems


def _draw_other(
    utterance: Utterance, position: int, clips: Sequence[Utterance], seed: int
) -> Utterance | None:
    """Draw one of the speaker's clips with equal probability, except the utterance itself and copies of its recording.

    ``position`` is the index of the utterance among the clips.
    """
    others = len(clips) - 1
    if not others:
        return None
    first = random.Random(f"{seed}:{utterance.recording.name}:{utterance.text}").randrange(others)
    for i in range(others):
        other = clips[(position + 1 + (first + i) % others) % len(clips)]
        if not is_same_content(utterance.recording, other.recording):
            return other
    return None
