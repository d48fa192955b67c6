"""Real recordings with transcripts, from Debian, as a corpus: the prompts of a telephone exchange, one speaker.

    apt-get install asterisk-core-sounds-en-g722 ffmpeg
    python scripts/build_asterisk_corpus.py corpora/asterisk

It decodes each recording that has a transcript into `wav/` (16 kHz, as recorded) and writes `train.jsonl` and
`held_out.jsonl` (every tenth). What is no speech (tones, silences) is in them too: finding that is the business of
`higgs-trainer prepare`.

The recordings are by Allison Smith, CC-BY-SA-3.0 (`/usr/share/doc/asterisk-core-sounds-en-g722/copyright`).
"""

import argparse
import gzip
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

SOUNDS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
TRANSCRIPTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
HELD_OUT_EVERY = 10
SPEAKER, LANGUAGE = "allison", "en"


def read_transcripts() -> Iterator[tuple[str, str]]:
    """(name of the recording, what is said) of every line that names a recording which is there."""
    for line in gzip.decompress(TRANSCRIPTS.read_bytes()).decode("utf-8").splitlines():
        name, separator, text = line.partition(": ")
        if separator and not line.startswith(";") and (SOUNDS / f"{name}.g722").is_file():
            yield name, text.strip()


def decode_g722(path: Path, wav: Path) -> None:
    """G.722, which libsndfile does not know, as WAV."""
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
    rows = []
    for name, text in read_transcripts():
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
