"""Test the judges of ``evaluate`` on cases with a known answer: ``python benchmarks/judges.py SET SET [...] [--json]``.

A SET is a manifest, or recordings that Debian packages bring (``librivox``, ``asterisk``: see benchmarks/codec.py). The
recordings of each set are judged as ``higgs-trainer evaluate`` judges speech, and so are five cases made from them:

    shuffled   the right voice says another sentence
    swapped    a voice of the next SET says another sentence
    noisy      with noise added, 10 dB below the speech
    noise      white noise instead of speech
    silence    silence instead of speech
"""

import argparse
import json
from typing import Any

import torch
from codec import Clips, read_set
from torch import Tensor

from higgs_trainer.audio.files import SAMPLE_RATE_HZ
from higgs_trainer.evaluation.figures import FIGURES, compute_figures
from higgs_trainer.evaluation.judging import ClipToJudge, Judges, judge_clips, load_judges
from higgs_trainer.evaluation.sentences import EvaluationSentence
from higgs_trainer.evaluation.voices import embed_voices
from higgs_trainer.speech.generate import Request


def build_cases(waves: list[Tensor], strangers: list[Tensor]) -> dict[str, list[Tensor]]:
    """Build the clips (S,) of each case, one for each sentence."""
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
    """Return a row for each case."""
    waves = [wave_S for _, wave_S in clips]
    sentences = [EvaluationSentence(Request(text), name, wave_S, ()) for text, wave_S in clips]
    voices = embed_voices(sentences, judges.encoder, SAMPLE_RATE_HZ, other_voice=strangers)
    rows = []
    for case, sounds in build_cases(waves, strangers).items():
        judged = judge_clips(case, sentences, [ClipToJudge(sound) for sound in sounds], voices, judges)
        figures = compute_figures(judged).figures
        shown = {
            figure: None if (found := figures[figure]) is None else [found.value, found.low, found.high]
            for figure in FIGURES
            if figure not in ("wer_homophones_forgiven", "stopped", "length_ratio")
        }
        rows.append({"set": name, "case": case, "clips": len(clips), **shown})
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the rows as markdown, each figure with its 95% interval."""
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
    """Print the table and, with ``--json``, the same as JSON on the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="+", metavar="SET", help="librivox, asterisk, or a manifest")
    parser.add_argument(
        "--sample", type=int, default=10, help="maximum number of clips per set, at least 2 (10)"
    )
    parser.add_argument("--spell-digits", action="store_true", help="compare numbers digit by digit")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    judges = load_judges("whisper-tiny.en", digits_spelled=arguments.spell_digits)
    sets = [(name, read_set(name, arguments.sample)) for name in arguments.sets]
    if len(sets) < 2:
        parser.error("give at least two SETs: each provides another voice for the one before it")
    rows = []
    for number, (name, clips) in enumerate(sets):
        _, next_clips = sets[(number + 1) % len(sets)]
        rows += measure_set(name, clips, [wave_S for _, wave_S in next_clips], judges)
    print_table(rows)
    if arguments.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
