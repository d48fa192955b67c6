"""Sum up a corpus in words: its size, whether it is enough for a voice, and what is wrong with it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from higgs_trainer.audio.files import SAMPLE_RATE_HZ
from higgs_trainer.corpus.work_directory.corpus_tables import CorpusTables, VoiceCount
from higgs_trainer.errors import count_noun

ENOUGH, START = 300, 50
"""Recordings of one speaker. The authors of Orpheus, a speech model of the same kind and size, recommend 300 for each
speaker and say that good results begin at about 50 (docs/prepare.md)."""

MOST_NAMED = 3


@dataclass(frozen=True)
class Remark:
    """A sentence about the corpus. ``kind``: "right" if all is well, "wrong" if something needs work, else empty."""

    kind: str
    text: str


def build_title(tables: CorpusTables) -> str:
    """Return the corpus in numbers, such as "742 recordings, 2 speakers, 1.52 h, nl"."""
    count, seconds = tables.count_targets()
    voices = tables.count_voices()
    speakers = {voice.speaker for voice in voices} - {None}
    languages = sorted({voice.language for voice in voices if voice.language})
    parts = [
        count_noun(count, "recording"),
        count_noun(len(speakers), "speaker") if speakers else "",
        format_duration(seconds),
        ", ".join(languages) if len(languages) <= MOST_NAMED else count_noun(len(languages), "language"),
    ]
    return ", ".join(filter(None, parts))


def format_duration(seconds: float) -> str:
    """Return hours, minutes or seconds, whichever has few digits."""
    if seconds >= 3600:
        return f"{seconds / 3600:,.2f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def judge_corpus_size(voices: Sequence[VoiceCount]) -> Remark:
    """Say whether the usable recordings of a speaker are enough for a voice by LoRA."""
    speakers: dict[str | None, tuple[int, float]] = {}
    for voice in voices:
        usable, seconds = speakers.get(voice.speaker, (0, 0.0))
        speakers[voice.speaker] = usable + voice.usable, seconds + voice.usable_seconds
    ranked = sorted(speakers.items(), key=lambda item: item[1], reverse=True)
    enough = [item for item in ranked if item[1][0] >= ENOUGH]
    recommended = f"at least {ENOUGH} recordings of a speaker are recommended"
    if not ranked or not ranked[0][1][0]:
        return Remark("wrong", f"No recording can be used; {recommended}.")
    if enough:
        voice_count = "one voice" if len(enough) == 1 else f"{len(enough)} voices"
        return Remark("right", f"Enough for {voice_count} by LoRA: {_list_speakers(enough)}; {recommended}.")
    most = _list_speakers(ranked[:1])
    if ranked[0][1][0] >= START:
        return Remark("", f"A start for one voice by LoRA: {most}; {recommended}.")
    return Remark(
        "wrong",
        f"Too little for a voice by LoRA: {most}; {recommended}, and {START} are the least. Without training, a "
        "recording can be given to generate as a reference.",
    )


def _list_speakers(speakers: Sequence[tuple[str | None, tuple[int, float]]]) -> str:
    shown = []
    for speaker, (usable, seconds) in speakers[:MOST_NAMED]:
        counts = f"{count_noun(usable, 'usable recording')}, {format_duration(seconds)}"
        shown.append(f"{counts}, if they are of one person" if speaker is None else f"{speaker} has {counts}")
    if len(speakers) > MOST_NAMED:
        shown.append(f"and {len(speakers) - MOST_NAMED} more")
    return "; ".join(shown)


def list_remarks(tables: CorpusTables) -> Iterator[Remark]:
    """Yield what a user should know first: size, problems, sample rate."""
    yield judge_corpus_size(tables.count_voices())
    empty, rejected = tables.count_empty(), tables.count_rejected()
    if empty:
        yield Remark("wrong", f"{count_noun(empty, 'file')} {'is' if empty == 1 else 'are'} empty.")
    if others := rejected - empty:
        rows = count_noun(others, "other row" if empty else "row")
        yield Remark("wrong", f"{rows} {'has' if others == 1 else 'have'} a problem.")
    if not rejected:
        yield Remark("right", "No row has a problem.")
    yield from _judge_sample_rates(tables)


def _judge_sample_rates(tables: CorpusTables) -> Iterator[Remark]:
    formats = tables.count_audio_formats()
    low = [(rate_hz, count) for rate_hz, _, count in formats if rate_hz < SAMPLE_RATE_HZ]
    if not low:
        return
    affected, total = sum(count for _, count in low), sum(count for *_, count in formats)
    share = "All recordings have" if affected == total else f"{affected:,} of {total:,} recordings have"
    rates = sorted({rate_hz for rate_hz, _ in low})
    yield Remark(
        "wrong",
        f"{share} a sample rate of {' or '.join(f'{rate_hz:,}' for rate_hz in rates)} Hz, less than the "
        f"{SAMPLE_RATE_HZ:,} Hz of the model: their sounds above {rates[0] / 2000:.3g} kHz are missing. Use the "
        "originals, if there are any.",
    )
