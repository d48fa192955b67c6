"""Build the data of the demo from the corpora of `build_demo_corpora.py`: codec, digits, recordings of the new voice.

    python scripts/build_demo_assets.py corpora packages/higgs-trainer-demo/src/higgs_trainer_demo

It takes five minutes on two CPU cores and is seeded. The codec is fitted on the new voices too, because 256 codes in
each codebook can only represent voices that they were fitted on (docs/decisions/demo.md). The base model is not trained
on them.
"""

import argparse
import json
import random
import shutil
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors.numpy import save_file

from higgs_trainer.audio.files import read_audio
from higgs_trainer.audio.mel_codec import MelCodec

CODES_IN_A_CODEBOOK = 256
CLIPS_OF_A_VOICE = 20
CLIPS_OF_A_NEW_VOICE = 60
NEW_VOICE = "new-slt"
SCRATCH_VOICE = "scratch-rms"
CODEC_VOICES = (
    *("awb", "awb-r111", "awb-r123", "awb-r82", "awb-r91"),
    *("jf_alpha", "jf_alpha-r110", "jf_alpha-r90", "jm_kumo", "jm_kumo-r110", "jm_kumo-r90"),
    *("joe", "joe-r115", "joe-r87"),
    *("kal16", "kal16-r111", "kal16-r123", "kal16-r82", "kal16-r91"),
    *("new-kokoro", "new-slt"),
    *("rms", "rms-r111", "rms-r123", "rms-r82", "rms-r91"),
)


def read_rows(corpora: Path, voice: str, manifest: str = "manifest.jsonl") -> list[dict[str, str]]:
    """Read the rows of a voice's manifest, with ``audio`` as a path relative to the working directory."""
    lines = (corpora / voice / manifest).read_text(encoding="utf-8").splitlines()
    return [{**row, "audio": str(corpora / voice / row["audio"])} for row in map(json.loads, lines)]


def fit_codec(corpora: Path) -> MelCodec:
    """Fit the demo's codec on some clips of every voice."""
    generator = random.Random(0)
    waveforms = []
    for voice in CODEC_VOICES:
        count = CLIPS_OF_A_NEW_VOICE if voice.startswith("new") else CLIPS_OF_A_VOICE
        waveforms += [read_audio(row["audio"]) for row in generator.sample(read_rows(corpora, voice), count)]
    return MelCodec.fit(waveforms, codebook_size=CODES_IN_A_CODEBOOK, seed=0, name="demo")


def write_digits(corpora: Path, codec: MelCodec, folder: Path) -> None:
    """Write the corpus of `higgs-trainer demo --from-scratch` as codes: about a megabyte for 98 minutes."""
    rows = read_rows(corpora, SCRATCH_VOICE)
    clips = [codec.encode(read_audio(row["audio"])).numpy().astype(np.uint8) for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    num_frames = np.array([len(clip) for clip in clips], dtype=np.int32)
    save_file({"codes": np.concatenate(clips), "num_frames": num_frames}, folder / "codes.safetensors")
    (folder / "texts.txt").write_text("".join(row["text"] + "\n" for row in rows), encoding="utf-8")


def write_new_voice(corpora: Path, folder: Path) -> None:
    """Write the recordings of the new voice as FLAC, with one manifest for training and one held-out manifest.

    Opus would take a third of the space, but its noise changes the codes: after training on them, the word error rate
    was one in five instead of one in twelve.
    """
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    train, repeating, held_out = (
        read_rows(corpora, NEW_VOICE, f"{manifest}.jsonl")
        for manifest in ("manifest", "repeating", "held_out")
    )
    for name, rows in (("train", train + repeating), ("held_out", held_out)):
        lines = []
        for number, row in enumerate(rows):
            path = Path("audio") / f"{name}-{number:03d}.flac"
            samples, rate = soundfile.read(row["audio"], dtype="int16")
            soundfile.write(folder / path, samples, rate, format="FLAC", subtype="PCM_16")
            lines.append(
                json.dumps({"audio": str(path), "text": row["text"], "speaker": row["speaker"]}) + "\n"
            )
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Build all data of the demo."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpora", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--keep-codec", action="store_true", help="use the codec in the output folder")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if not arguments.keep_codec:
        fit_codec(arguments.corpora).save_pretrained(arguments.output / "codec")
    codec = MelCodec.from_pretrained(arguments.output / "codec")
    write_digits(arguments.corpora, codec, arguments.output / "digits")
    write_new_voice(arguments.corpora, arguments.output / "new_voice")
    shutil.copy(arguments.corpora / "eval_strings.txt", arguments.output / "unheard_strings.txt")
    shutil.copy(arguments.corpora / "development_strings.txt", arguments.output / "development_strings.txt")


if __name__ == "__main__":
    main()
