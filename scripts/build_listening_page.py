"""Generate the clips of docs/listen.md with a finished demo, and write its table.

    higgs-trainer demo -o runs/demo
    python scripts/build_listening_page.py runs/demo

Takes the first held-out sentences, so that none is chosen by ear. Each is spoken by the model before and after
training. The recording of the real voice, plain and through the codec, is next to it. Whisper writes down what it
hears. Needs the extra demo.
"""

import argparse
import re
import shutil
import sys
from pathlib import Path

import soundfile
from torch import Tensor

from higgs_trainer import load_speech_model
from higgs_trainer.audio.codec import load_codec
from higgs_trainer.audio.files import SAMPLE_RATE_HZ, read_audio
from higgs_trainer.evaluation.recogniser import load_recogniser
from higgs_trainer.manifest.rows import read_rows
from higgs_trainer.model.model_files import CODEC_FOLDER

PAGE = Path(__file__).parents[1] / "docs" / "listen.md"
CLIPS = PAGE.parent / "assets" / "listen"
NUM_SENTENCES = 5
START, END = "<!-- clips: written by scripts/build_listening_page.py -->", "<!-- end of clips -->"
NAMES = {
    "before": "before training",
    "after": "**after training**",
    "codec": "the real voice through the codec",
    "real": "the real voice",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("demo", type=Path, help="the folder of a finished demo")
    demo = parser.parse_args().demo
    if not (demo / "after").is_dir():
        sys.exit(f"{demo} has no folder after/. Run: higgs-trainer demo -o {demo}")

    rows = read_rows(demo / "recordings" / "held_out.jsonl")[:NUM_SENTENCES]
    codec = load_codec(demo / "base" / CODEC_FOLDER)
    real = [read_audio(row.recording) for row in rows]
    texts = [row.text for row in rows]
    waveforms = {
        "before": generate(demo / "base", texts),
        "after": generate(demo / "after", texts),
        "codec": [codec.decode(codec.encode(waveform_S)) for waveform_S in real],
        "real": real,
    }
    shutil.rmtree(CLIPS, ignore_errors=True)
    CLIPS.mkdir(parents=True)
    recogniser = load_recogniser()
    lines = []
    for number, text in enumerate(texts):
        lines += [f"## “{text}”", "", "| | listen | a recogniser hears |", "|---|---|---|"]
        for name, described in NAMES.items():
            waveform_S = waveforms[name][number]
            clip = write_clip(waveform_S, f"{number + 1}-{name}")
            label = f"{text}, {described.strip('*')}"
            # The link is for places that show no players, such as the source of the page.
            row = (f"[{described}]({clip})", show_player(clip, label), recogniser.transcribe(waveform_S))
            lines.append(f"| {' | '.join(row)} |")
        lines.append("")
    head, _, rest = PAGE.read_text("utf-8").partition(START)
    PAGE.write_text("\n".join([head + START, "", *lines, END]) + rest.partition(END)[2], "utf-8")


def generate(model: Path, texts: list[str]) -> list[Tensor]:
    """Generate every text with the model's own seed."""
    speech_model = load_speech_model(model)
    return [speech_model.generate(text).waveform_S for text in texts]


def write_clip(waveform_S: Tensor, name: str) -> str:
    """Write an MP3 file of some 40 kbit/s, and return its path relative to the page."""
    path = CLIPS / f"{name}.mp3"
    samples = waveform_S.clamp(-1.0, 1.0).numpy()
    soundfile.write(path, samples, SAMPLE_RATE_HZ, compression_level=0.5, bitrate_mode="VARIABLE")
    return path.relative_to(PAGE.parent).as_posix()


def show_player(clip: str, label: str) -> str:
    """Return a player for the page."""
    label = re.sub(r'["<>&]', "", label)
    return f'<audio controls preload="metadata" aria-label="{label}" src="{clip}"></audio>'


if __name__ == "__main__":
    main()
