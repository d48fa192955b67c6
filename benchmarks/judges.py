"""Do the judges of ``evaluate`` know good from bad? ``python benchmarks/judges.py SET SET [SET ...] [--json]``.

A SET is a manifest, or recordings that Debian packages bring (``librivox``, ``asterisk``: see benchmarks/codec.py). The
recordings of each set are judged as ``higgs-trainer evaluate`` judges speech, and so are five cases made of them whose
answer is known:

    shuffled   the right voice says another sentence
    swapped    the next SET says something else in its own voice
    noisy      noise upon it, 10 dB below the speech
    noise      white noise in its place
    silence    nothing
"""

import argparse
import json
from typing import Any

import torch
from codec import Clips, read_set
from torch import Tensor

from higgs_trainer.audio.files import SAMPLE_RATE_HZ
from higgs_trainer.evaluation.comparison import FIGURES, summarize
from higgs_trainer.evaluation.judging import Clip, Judges, judge_clips, load_judges
from higgs_trainer.evaluation.sentences import Sentence, embed_voices
from higgs_trainer.speech.generate import Request


def build_cases(waves: list[Tensor], strangers: list[Tensor]) -> dict[str, list[Tensor]]:
    """Clips (S,) of each case, one a sentence."""
    random = torch.Generator().manual_seed(0)
    noises = [torch.randn(len(wave), generator=random) * wave.std() for wave in waves]
    return {
        "recordings": waves,
        "shuffled": waves[1:] + waves[:1],
        "swapped": [strangers[i % len(strangers)] for i in range(len(waves))],
        "noisy": [wave + 10 ** (-10 / 20) * noise for wave, noise in zip(waves, noises, strict=True)],
        "noise": noises,
        "silence": [torch.zeros(len(wave)) for wave in waves],
    }


def measure_set(name: str, clips: Clips, strangers: list[Tensor], judges: Judges) -> list[dict[str, Any]]:
    """A row a case."""
    waves = [wave_S for _, wave_S in clips]
    sentences = [Sentence(Request(text), name, wave_S, ()) for text, wave_S in clips]
    voices = embed_voices(sentences, judges.encoder, SAMPLE_RATE_HZ, other_voice=strangers)
    rows = []
    for case, sounds in build_cases(waves, strangers).items():
        judged = judge_clips(case, sentences, [Clip(sound, True, "") for sound in sounds], voices, judges)
        figures = summarize(judged).figures
        shown = {
            figure: None if (found := figures[figure]) is None else [found.value, found.low, found.high]
            for figure in FIGURES
            if figure not in ("stopped", "length_ratio")
        }
        rows.append({"set": name, "case": case, "clips": len(clips), **shown})
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """As markdown, each figure with its 95% interval."""
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        cells = []
        for name, value in row.items():
            pattern = "{:.1%}" if name in ("wer", "cer") else "{:.2f}"
            if isinstance(value, list):
                cells.append("{} [{}, {}]".format(*(pattern.format(part) for part in value)))
            else:
                cells.append("-" if value is None else str(value))
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Print the table; with ``--json`` the same as JSON in the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="+", metavar="SET", help="librivox, asterisk, or a manifest")
    parser.add_argument("--sample", type=int, default=10, help="at most so many clips of a set (10)")
    parser.add_argument("--json", action="store_true", help="the figures once more, in the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    judges = load_judges("whisper-tiny.en")
    sets = [(name, read_set(name, arguments.sample)) for name in arguments.sets]
    if len(sets) < 2:
        parser.error("give two SETs or more: each lends the other a stranger's voice")
    rows = []
    for number, (name, clips) in enumerate(sets):
        _, next_clips = sets[(number + 1) % len(sets)]
        rows += measure_set(name, clips, [wave_S for _, wave_S in next_clips], judges)
    print_table(rows)
    if arguments.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
