"""Measure whether a recogniser hears a language: word errors in real recordings, and in clips without speech.

    apt-get install fillets-ng-data fillets-ng-data-nl fillets-ng-data-cs pocketsphinx-testdata
    python benchmarks/recognisers.py nl cs en --clips 100

Dutch and Czech are acted dialogues of the game Fish Fillets (some distorted on purpose), with the texts of the game;
English are five sentences of a LibriVox reading. A hum is a tone of the pitch and length of each recording, as a model
makes that has learnt nothing. For each language: recordings, recordings of other sentences, and hums.
"""

import argparse
import math
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from higgs_trainer.audio.files import SAMPLE_RATE_HZ, read_audio
from higgs_trainer.evaluation.precision import NumberStyle
from higgs_trainer.evaluation.recogniser import load_recogniser
from higgs_trainer.evaluation.statistics import Ratio, estimate
from higgs_trainer.evaluation.word_errors import count_errors

GAME = Path("/usr/share/games/fillets-ng")
LIBRIVOX = Path("/usr/share/pocketsphinx/test/data/librivox")
DIALOGUE = re.compile(r'dialogId\("(?P<name>[^"]+)"[^\n]*\n\s*dialogStr\("(?P<text>(?:[^"\\]|\\.)*)"\)')
SPOKEN = re.compile(r"<s> (?P<text>.*) </s> \((?P<name>.*)\)")
FEWEST_WORDS = 5
HUMS = 10
STYLE = NumberStyle(1, is_percent=True)

Recording = tuple[str, Path]
"""A text, and the file in which it is spoken."""


def list_recordings(language: str) -> list[Recording]:
    """List the recordings of a language whose text has at least `FEWEST_WORDS` words, in a fixed order."""
    found = _list_librivox() if language == "en" else _list_dialogues(language)
    return sorted((text, file) for text, file in found if len(text.split()) >= FEWEST_WORDS)


def _list_dialogues(language: str) -> Iterator[Recording]:
    for script in sorted(GAME.glob(f"script/*/dialogs_{language}.lua")):
        for line in DIALOGUE.finditer(script.read_text(encoding="utf-8")):
            file = GAME / "sound" / script.parent.name / language / f"{line['name']}.ogg"
            if file.is_file() and file.stat().st_size > 0:
                yield line["text"].replace('\\"', '"'), file


def _list_librivox() -> Iterator[Recording]:
    transcription = LIBRIVOX / "transcription"
    if transcription.is_file():
        for line in SPOKEN.finditer(transcription.read_text(encoding="utf-8")):
            yield line["text"], LIBRIVOX / f"{line['name']}.wav"


def hum(waveform_S: Tensor, pitch_hz: float = 120.0) -> Tensor:
    """Return a tone of the length of a waveform (S,), with four overtones."""
    time_S = torch.arange(len(waveform_S)) / SAMPLE_RATE_HZ
    return sum(
        (0.1 / k * torch.sin(2 * math.pi * k * pitch_hz * time_S) for k in range(1, 6)),
        torch.zeros_like(time_S),
    )


def main() -> None:
    """Print a line for each language and kind of clip."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("languages", nargs="+", metavar="LANGUAGE")
    parser.add_argument("--asr", help="default: the packaged one for the language")
    parser.add_argument("--clips", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for language in arguments.languages:
        chosen = list_recordings(language)
        random.Random(0).shuffle(chosen)
        texts, waveforms = _read(chosen[: arguments.clips])
        recogniser = load_recogniser(arguments.asr, {language: len(texts)})
        name = f"{language}, {recogniser.source.name}"
        heard = [recogniser.transcribe(clip, language=language) for clip in waveforms]
        print(f"{name}, recordings: {describe(texts, heard, language)}", flush=True)
        print(f"{name}, of other sentences: {describe(texts, heard[1:] + heard[:1], language)}", flush=True)
        hummed = [recogniser.transcribe(hum(clip), language=language) for clip in waveforms[:HUMS]]
        print(f"{name}, hums: {describe(texts[:HUMS], hummed, language)}", flush=True)


def _read(recordings: Sequence[Recording]) -> tuple[list[str], list[Tensor]]:
    return [text for text, _ in recordings], [read_audio(file) for _, file in recordings]


def describe(texts: Sequence[str], heard: Sequence[str], language: str) -> str:
    """Return the error rates with their intervals."""
    counts = [count_errors(*pair, language=language) for pair in zip(texts, heard, strict=True)]
    rates = []
    for name in ("words", "characters"):
        found = [getattr(one, name) for one in counts]
        ratio = Ratio(
            torch.tensor([one.errors for one in found]).double().numpy(),
            torch.tensor([one.total for one in found]).double().numpy(),
        )
        figure = estimate(ratio)
        assert figure is not None
        rates.append(
            f"{name} {STYLE.show_with_interval(figure.value, figure.low, figure.high, pattern='[{}, {}]')}"
        )
    return f"{', '.join(rates)}, {len(texts)} clips"


if __name__ == "__main__":
    main()
