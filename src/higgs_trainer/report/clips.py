"""Encode clips for the page, as many as fit into it."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from higgs_trainer.errors import AudioError
from higgs_trainer.report.listening import ClipFile, RunColumn, SpokenSentence

# The rest of the 5 MB is for everything else on the page.
BUDGET_BYTES = 3_800_000
LONGEST_SECONDS = 30.0
# A longer file is not decoded: it would take too much memory.
MOST_SECONDS = 300.0
MOST_MISFITS = 4


@dataclass(frozen=True)
class ShownClip:
    """A clip on the page. ``audio`` and ``spectrogram`` are data URIs, or empty; then ``note`` may say why."""

    audio: str
    spectrogram: str
    seconds: float
    transcript: str | None
    is_right: bool | None
    stopped: bool
    says: str | None
    note: str


ShownClips = Mapping[RunColumn, ShownClip]


@dataclass(frozen=True)
class ShownSentence:
    """A sentence on the page, with its clips from before and after training, and those from during training."""

    text: str
    clips: ShownClips
    during_training: ShownClips


def find_longest(clips: ShownClips) -> float:
    """Return the seconds of the longest clip, because the spectrograms of a sentence share one time scale."""
    return max((clip.seconds for clip in clips.values()), default=0.0)


class Budget:
    """Count how many bytes of clips still fit into the page, and how many clips did not."""

    def __init__(self, left_bytes: int = BUDGET_BYTES) -> None:
        self.left_bytes = left_bytes
        self.left_out = 0
        self._misfits = 0

    def show(self, text: str, clips: Mapping[RunColumn, ClipFile]) -> dict[RunColumn, ShownClip]:
        """Encode all of these clips of a sentence, or none of them if they do not fit."""
        shown: dict[RunColumn, ShownClip] = {}
        left = self.left_bytes
        for place, clip in clips.items():
            # Encoding takes time: give up soon.
            if left < 0 or self._misfits == MOST_MISFITS:
                break
            shown[place] = _show(clip)
            left -= _measure(text, place, shown[place])
        if left < 0 or len(shown) < len(clips):
            self._misfits = min(self._misfits + 1, MOST_MISFITS)
            self.left_out += len(clips)
            return {}
        self.left_bytes = left
        return shown


def _measure(text: str, place: RunColumn, clip: ShownClip) -> int:
    """Return about how many bytes of the page a clip takes. The page repeats the sentence for each clip."""
    words = [text, text, text, *place, clip.transcript or "", clip.says or "", clip.note]
    return len(clip.audio) + len(clip.spectrogram) + sum(len(html.escape(one).encode()) for one in words)


def show_sentences(
    sentences: Sequence[SpokenSentence], budget: Budget
) -> tuple[list[ShownSentence], list[str]]:
    """Encode sentences within the budget, clips from during training last. Return them, and a note on the rest."""
    clips = [budget.show(one.text, one.clips) for one in sentences]
    during_training = [budget.show(one.text, one.during_training) for one in sentences]
    shown = [
        ShownSentence(one.text, *kinds)
        for one, *kinds in zip(sentences, clips, during_training, strict=True)
        if any(kinds)
    ]
    if not budget.left_out:
        return shown, []
    note = (
        f"{budget.left_out} further clips are left out to keep the page below 5 MB; the run folder has them."
    )
    return shown, [note]


def group_by_run(clips: ShownClips) -> dict[str, dict[str, ShownClip]]:
    """Return {run: {column: clip}}."""
    groups: dict[str, dict[str, ShownClip]] = {}
    for (run, column), clip in clips.items():
        groups.setdefault(run, {})[column] = clip
    return groups


def _show(clip: ClipFile) -> ShownClip:
    # These import torch, which takes seconds. A page without clips is written without it.
    from higgs_trainer.audio.files import SAMPLE_RATE_HZ, decode_file, to_waveform
    from higgs_trainer.page.sound import draw_spectrogram, encode_audio

    seconds, audio, spectrogram, note = 0.0, "", "", ""
    try:
        waveform_S = to_waveform(decode_file(clip.audio, max_seconds=MOST_SECONDS))
    except AudioError as error:
        note = f"{clip.audio.name} {error.what}"
    else:
        seconds = len(waveform_S) / SAMPLE_RATE_HZ
        if seconds > LONGEST_SECONDS:
            note = f"the first {LONGEST_SECONDS:g} s"
            waveform_S = waveform_S[: round(LONGEST_SECONDS * SAMPLE_RATE_HZ)]
        if len(waveform_S):
            audio = encode_audio(waveform_S, SAMPLE_RATE_HZ)
            spectrogram = draw_spectrogram(waveform_S, SAMPLE_RATE_HZ)
    return ShownClip(
        audio, spectrogram, seconds, clip.transcript, clip.is_right, clip.stopped, clip.says, note
    )
