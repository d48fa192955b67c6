"""Write a corpus of real recordings from a Debian package: the prompts of a telephone exchange, by one speaker.

    apt-get install asterisk-core-sounds-en asterisk-core-sounds-en-g722 ffmpeg
    python scripts/build_asterisk_corpus.py corpora/asterisk

Each recording with a transcript is decoded into `wav/` at its own sample rate of 16 kHz. `held_out.jsonl` lists every
tenth recording and `train.jsonl` the others. Recordings without speech (tones, silence) are included, because
`higgs-trainer prepare` must find them.

The recordings are by Allison Smith, CC-BY-SA-3.0 (`/usr/share/doc/asterisk-core-sounds-en-g722/copyright`).
"""

import argparse
import gzip
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SOUNDS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
TRANSCRIPTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
HELD_OUT_EVERY = 10
SPEAKER, LANGUAGE = "allison", "en"

NEEDED = {
    TRANSCRIPTS: "asterisk-core-sounds-en",
    SOUNDS: "asterisk-core-sounds-en-g722",
}
"""Path -> the Debian package that holds it."""
SECONDS_BETWEEN_LINES = 5
"""How often the script says how far it is."""


def find_missing_packages() -> list[str]:
    """Return the Debian packages that this script needs and that are not installed."""
    missing = [package for path, package in NEEDED.items() if not path.exists()]
    return missing if shutil.which("ffmpeg") else [*missing, "ffmpeg"]


def read_transcripts() -> Iterator[tuple[str, str]]:
    """Yield the name and the transcript of each recording that exists."""
    for line in gzip.decompress(TRANSCRIPTS.read_bytes()).decode("utf-8").splitlines():
        name, separator, text = line.partition(": ")
        if separator and not line.startswith(";") and (SOUNDS / f"{name}.g722").is_file():
            yield name, text.strip()


def decode_g722(path: Path, wav: Path) -> None:
    """Decode a G.722 file, which libsndfile cannot read, to WAV."""
    wav.parent.mkdir(parents=True, exist_ok=True)
    command = ["ffmpeg", "-loglevel", "error", "-y", "-f", "g722", "-i", str(path), str(wav)]
    subprocess.run(command, check=True)


def main() -> None:
    """Write the corpus."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, metavar="DIR")
    output = parser.parse_args().output
    if missing := find_missing_packages():
        sys.exit(f"error: {', '.join(missing)}: not installed. Run: apt-get install {' '.join(missing)}")
    rows = []
    transcripts = list(read_transcripts())
    told = time.monotonic()
    for number, (name, text) in enumerate(transcripts):
        if time.monotonic() - told >= SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            print(f"{number} of {len(transcripts)} recordings are decoded", flush=True)
        wav = output / "wav" / f"{name}.wav"
        decode_g722(SOUNDS / f"{name}.g722", wav)
        rows.append(
            {"audio": str(wav.relative_to(output)), "text": text, "speaker": SPEAKER, "language": LANGUAGE}
        )
    held_out = rows[::HELD_OUT_EVERY]
    train = [row for row in rows if row not in held_out]
    for manifest, part in (("train", train), ("held_out", held_out)):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in part]
        (output / f"{manifest}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{output / manifest}.jsonl: {len(part)} recordings")


if __name__ == "__main__":
    main()
