"""Kill `prepare` with SIGKILL at random moments, and resume it after each kill.

    python scripts/kill_prepare.py --kills 10

The dataset must never be incomplete, and in the end it must equal that of an undisturbed run byte for byte. A recording
that was encoded before a kill must not be encoded again. The exit code is 1 if anything differs. Each kill comes a
random time after a random number of encoded recordings: during encoding, while codes are written, or while the dataset
is assembled.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from higgs_trainer.audio.codec import load_codec
from higgs_trainer.audio.files import write_audio
from higgs_trainer.corpus.prepare import prepare
from higgs_trainer.corpus.work_directory.directory import WorkDirectory
from higgs_trainer.run_folder import CHECKSUMS_FILE

RECORDINGS = 40
LONGEST_MOMENT_SECONDS = 0.2
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
}


class LoggingCodec:
    """The embedded codec, which also writes a line to a log file for each recording that it encodes."""

    def __init__(self, log: Path) -> None:
        self._codec = load_codec("embedded")
        self._log = log

    def __getattr__(self, name: str) -> object:
        return getattr(self._codec, name)

    def encode_batch(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        codes = self._codec.encode_batch(waveforms)
        with self._log.open("a") as file:
            file.writelines(f"{len(waveform_S)}\n" for waveform_S in waveforms)
        return codes


def write_recordings(folder: Path) -> Path:
    """Write recordings of noise and a manifest, and return the manifest's path.

    All recordings have different lengths, so each is a batch, and its length in the log identifies it.
    """
    rows = []
    for index in range(RECORDINGS):
        generator = torch.Generator().manual_seed(index)
        noise_S = torch.rand(12_000 + 960 * index, generator=generator) - 0.5
        write_audio(folder / f"{index}.wav", noise_S)
        rows.append(json.dumps({"audio": f"{index}.wav", "text": f"number {index}"}) + "\n")
    (folder / "m.jsonl").write_text("".join(rows))
    return folder / "m.jsonl"


def start_prepare(manifest: Path, output: Path, log: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, __file__, "--worker", str(manifest), str(output), str(log)]
    return subprocess.Popen(command, env=os.environ | ENVIRONMENT, stderr=subprocess.DEVNULL)


def count_encoded(output: Path) -> int:
    """Count the recordings whose codes are in the work directory."""
    work = WorkDirectory(output)
    with work.open_codes(settings="", num_codebooks=1, process_index=0) as store:
        return store.count()


def run_and_kill(manifest: Path, output: Path, log: Path, *, at_count: int, moment_seconds: float) -> None:
    """Start `prepare`, wait until ``at_count`` recordings are encoded and ``moment_seconds`` more, and kill it."""
    process = start_prepare(manifest, output, log)
    while process.poll() is None and count_encoded(output) < at_count:
        time.sleep(0.005)
    time.sleep(moment_seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()


def read_folder(folder: Path) -> dict[str, bytes]:
    """Read the files that equal runs write equally: datasets draws a name for its state, which has a checksum."""
    drawn = ("state.json", CHECKSUMS_FILE)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name not in drawn}


def run(kills: int, seed: int, folder: Path) -> bool:
    """Kill and resume ``kills`` times, and return whether every condition was met."""
    rng = random.Random(seed)
    manifest = write_recordings(folder)
    if start_prepare(manifest, folder / "undisturbed", folder / "undisturbed.log").wait() != 0:
        raise SystemExit("the undisturbed run failed")
    output, log = folder / "disturbed", folder / "disturbed.log"
    is_right = True
    counts = sorted(rng.randrange(RECORDINGS) for _ in range(kills))
    for kill, at_count in enumerate(counts, start=1):
        moment_seconds = rng.uniform(0, LONGEST_MOMENT_SECONDS)
        run_and_kill(manifest, output, log, at_count=at_count, moment_seconds=moment_seconds)
        print(f"kill {kill}: {count_encoded(output)} of {RECORDINGS} encoded")
        # The run was killed after the rename, or it ended first. The dataset is compared below.
        if output.exists():
            break
    if not output.exists():
        is_right &= start_prepare(manifest, output, log).wait() == 0
    encoded = Counter(log.read_text().split())
    in_flight = sum(encoded.values()) - RECORDINGS
    print(f"encoded {sum(encoded.values())} times for {RECORDINGS} recordings and {kills} kills")
    is_right &= len(encoded) == RECORDINGS and in_flight <= kills
    same = read_folder(output) == read_folder(folder / "undisturbed")
    print(f"the dataset {'equals' if same else 'DIFFERS FROM'} that of an undisturbed run")
    return is_right and same and not WorkDirectory(output).folder.exists()


def main() -> None:
    """Run once undisturbed and once with kills, and compare the two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", nargs=3, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        manifest, output, log = arguments.worker
        torch.set_num_threads(1)
        prepare(manifest, output, codec=LoggingCodec(log))  # type: ignore[arg-type]
        return
    with tempfile.TemporaryDirectory() as folder:
        is_right = run(arguments.kills, arguments.seed, Path(folder))
    print("passed" if is_right else "FAILED")
    sys.exit(0 if is_right else 1)


if __name__ == "__main__":
    main()
