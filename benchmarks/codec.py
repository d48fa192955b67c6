"""What the codec leaves of speech: ``python benchmarks/codec.py SET [SET ...] [--codec embedded] [--json]``.

A SET is a manifest (JSON lines of ``audio`` and ``text``), or recordings that Debian packages bring:

    librivox    pocketsphinx-testdata: one reader of LibriVox, five sentences
    asterisk    asterisk-core-sounds-en-g722 (and ffmpeg): one speaker in a studio, a seeded sample of the prompts
                of four words and more (``--sample``)

For each set: the word error rate of the recordings and of their round trip through the codec; STOI, from 0 to 1
how much of the recordings' envelopes is left (with ``pip install pystoi``; a dash without it); the cosine of the clips'
speaker embeddings with the mean of the recordings', before and after. One core; the ASR takes most of the time.
"""

import argparse
import gzip
import io
import json
import random
import re
import subprocess
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from higgs_trainer.audio.codec import Codec, load_codec
from higgs_trainer.audio.files import SAMPLE_RATE_HZ, read_audio
from higgs_trainer.evaluation.figures import ModelFigures, compute_figures
from higgs_trainer.evaluation.judging import ClipToJudge, Judges, judge_clips, load_judges
from higgs_trainer.evaluation.sentences import EvaluationSentence
from higgs_trainer.evaluation.voices import embed_one_voice
from higgs_trainer.manifest.rows import read_rows
from higgs_trainer.speech.generate import Request

LIBRIVOX = Path("/usr/share/pocketsphinx/test/data/librivox")
ASTERISK = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
ASTERISK_TEXTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
FEWEST_WORDS = 4
STOI_RATE_HZ = 10_000

Clips = list[tuple[str, Tensor]]  # what is said, waveform_S at 24 kHz


def read_librivox(sample: int) -> Clips:
    """All of the sentences: they are few."""
    lines = (LIBRIVOX / "transcription").read_text(encoding="utf-8").splitlines()
    rows = [re.fullmatch(r"<s> (.*) </s> \((.*)\)", line.strip()) for line in lines if line.strip()]
    return [(row[1], read_audio(LIBRIVOX / f"{row[2]}.wav")) for row in rows if row]


def read_asterisk(sample: int) -> Clips:
    """``sample`` prompts of `FEWEST_WORDS` words and more, the same ones every time."""
    lines = gzip.decompress(ASTERISK_TEXTS.read_bytes()).decode("utf-8").splitlines()
    rows = [line.split(": ", 1) for line in lines if ": " in line and not line.startswith(";")]
    spoken = [
        (name, text.strip())
        for name, text in rows
        if len(text.split()) >= FEWEST_WORDS
        and not re.search(r"[\[\]()<>]", text)
        and (ASTERISK / f"{name}.g722").is_file()
    ]
    chosen = random.Random(0).sample(spoken, min(sample, len(spoken)))
    return [(text, decode_g722(ASTERISK / f"{name}.g722")) for name, text in chosen]


def decode_g722(path: Path) -> Tensor:
    """G.722, which libsndfile does not know -> waveform_S at 24 kHz."""
    command = ["ffmpeg", "-loglevel", "error", "-f", "g722", "-i", str(path), "-f", "wav", "-"]
    wav = subprocess.run(command, check=True, capture_output=True).stdout
    samples, rate_hz = soundfile.read(io.BytesIO(wav), dtype="float32")
    return torch.from_numpy(soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ, quality="HQ"))


DEBIAN_SETS: dict[str, Callable[[int], Clips]] = {"librivox": read_librivox, "asterisk": read_asterisk}


def read_set(name: str, sample: int) -> Clips:
    """The clips of a Debian set, or the first ``sample`` of a manifest."""
    if name in DEBIAN_SETS:
        return DEBIAN_SETS[name](sample)
    return [(row.text, read_audio(row.recording)) for row in read_rows(name)[:sample]]


def measure_stoi(clean_S: Tensor, degraded_S: Tensor) -> float:
    """Short-time objective intelligibility (Taal et al. 2011), at the rate at which it is defined."""
    from pystoi import stoi

    clean, degraded = (
        soxr.resample(wave_S[: len(clean_S)].numpy(), SAMPLE_RATE_HZ, STOI_RATE_HZ, quality="HQ")
        for wave_S in (clean_S, degraded_S)
    )
    return float(stoi(clean, degraded, STOI_RATE_HZ))


def judge_waveforms(
    texts: list[str], waveforms: list[Tensor], voice: list[Tensor], judges: Judges
) -> ModelFigures:
    """Judge clips of one voice. Its mean embedding is that of all recordings in ``voice``."""
    sentences = [EvaluationSentence(Request(text)) for text in texts]
    voices = embed_one_voice(voice, judges.encoder, SAMPLE_RATE_HZ, num_sentences=len(texts))
    return compute_figures(
        judge_clips("", sentences, [ClipToJudge(wave_S) for wave_S in waveforms], voices, judges)
    )


def measure_set(name: str, clips: Clips, codec: Codec, judges: Judges) -> dict[str, Any]:
    """One row of the table."""
    texts, originals = map(list, zip(*clips, strict=True))
    seconds = sum(map(len, originals)) / SAMPLE_RATE_HZ
    start = time.process_time()
    codes = [codec.encode(wave_S) for wave_S in originals]
    encoded = time.process_time()
    decoded = [codec.decode(codes_FK) for codes_FK in codes]
    done = time.process_time()
    of_originals = judge_waveforms(texts, originals, originals, judges).figures
    of_decoded = judge_waveforms(texts, decoded, originals, judges).figures
    return {
        "set": name,
        "clips": len(clips),
        "seconds": round(seconds, 1),
        "wer_originals": of_originals["wer"].value,
        "wer_round_trip": of_decoded["wer"].value,
        "stoi": (
            float(np.mean([measure_stoi(*pair) for pair in zip(originals, decoded, strict=True)]))
            if find_spec("pystoi")
            else None
        ),
        "similarity_originals": of_originals["similarity"].value,
        "similarity_round_trip": of_decoded["similarity"].value,
        "encode_cpu_seconds_per_second": (encoded - start) / seconds,
        "decode_cpu_seconds_per_second": (done - encoded) / seconds,
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """As markdown; a figure that was not measured is a dash."""
    columns = list(rows[0])
    print("| " + " | ".join(column.replace("_", " ") for column in columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        cells = []
        for column, value in row.items():
            if column.startswith("wer"):
                cells.append(f"{value:.1%}")
            elif isinstance(value, float) and column != "seconds":
                cells.append(f"{value:.3f}")
            else:
                cells.append("-" if value is None else str(value))
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    """Print the table; with ``--json`` the same as JSON in the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="+", metavar="SET", help="librivox, asterisk, or a manifest")
    parser.add_argument("--codec", default="embedded", help="as `higgs-trainer prepare --codec` takes it")
    parser.add_argument("--sample", type=int, default=60, help="at most so many clips of a set (60)")
    parser.add_argument("--spell-digits", action="store_true", help="compare numbers digit by digit")
    parser.add_argument("--json", action="store_true", help="the figures once more, in the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    codec, judges = (
        load_codec(arguments.codec),
        load_judges("whisper-tiny.en", with_quality=False, digits_spelled=arguments.spell_digits),
    )
    if codec.sample_rate_hz != SAMPLE_RATE_HZ:
        parser.error(
            f"{codec.name} works at {codec.sample_rate_hz} Hz, the recordings are at {SAMPLE_RATE_HZ}"
        )
    rows = [measure_set(name, read_set(name, arguments.sample), codec, judges) for name in arguments.sets]
    print_table(rows)
    if arguments.json:
        print(json.dumps({"codec": codec.name, "fingerprint": codec.fingerprint, "sets": rows}))


if __name__ == "__main__":
    main()
