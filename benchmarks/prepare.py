"""What preparing data costs, and what encoding once saves: ``python benchmarks/prepare.py [--json]``.

With the embedded codec, on a CPU, one thread a process. The recordings are the demo's, four in one, at 44.1 kHz.

* by stage: seconds of sound decoded, resampled, encoded and written in a second of work, and the codec's share;
* two processes against one, from the first row to the finished dataset (Python's start is left out);
* a prepared clip read back against the same clip encoded again, which each further epoch would cost (CPU time);
* a million rows read, checked (not decoded) and dealt out: the memory above that of the imports.

For the figures that matter, run it on a machine that does nothing else.
"""

import argparse
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch

from higgs_trainer.audio.codec import load_codec
from higgs_trainer.audio.files import SAMPLE_RATE_HZ, decode_file, read_audio, to_waveform
from higgs_trainer.corpus.inspection import store_rows
from higgs_trainer.corpus.prepare import prepare
from higgs_trainer.corpus.work_directory.directory import WorkDirectory
from higgs_trainer.dataset.prepared import build_features, read_prepared
from higgs_trainer.dataset.prepared_writer import write_prepared
from higgs_trainer.distributed import join_processes
from higgs_trainer.manifest.formats import open_source
from higgs_trainer.manifest.rows import check_rows, read_rows
from higgs_trainer.progress import skip_progress

RATE_HZ = 44_100
TRAIN_CLIPS = 100  # of the recordings to train on, with the 40 held out
JOINED = 4  # recordings in one
STAGE_CLIPS = 40  # of all, for the figures by stage
MANIFEST_FILES = 1000  # that the rows of the large manifest name in turn
ALONE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


def write_corpus(folder: Path) -> Path:
    """A manifest of the demo's recordings, each followed by the next three."""
    with as_file(files("higgs_trainer_demo") / "new_voice") as voice:
        rows = read_rows(voice / "train.jsonl")[:TRAIN_CLIPS] + read_rows(voice / "held_out.jsonl")
        waveforms = [read_audio(row.recording).numpy() for row in rows]
    lines = []
    for index in range(len(rows)):
        joined = [(index + step) % len(rows) for step in range(JOINED)]
        samples = np.concatenate([waveforms[i] for i in joined])
        samples = soxr.resample(samples, SAMPLE_RATE_HZ, RATE_HZ)
        soundfile.write(folder / f"{index}.wav", samples, RATE_HZ)
        text = " ".join(rows[i].text for i in joined)
        lines.append(json.dumps({"audio": f"{index}.wav", "text": text}) + "\n")
    (folder / "m.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "m.jsonl"


def measure_stages(manifest: Path, output: Path) -> dict[str, float]:
    """Seconds of work of each stage for a second of sound."""
    codec, utterances = load_codec("embedded"), read_rows(manifest)[:STAGE_CLIPS]
    build_features()  # imports `datasets`, which is no part of writing
    marks = [time.process_time()]
    decoded = [decode_file(utterance.recording) for utterance in utterances]
    marks.append(time.process_time())
    waveforms = [to_waveform(clip) for clip in decoded]
    marks.append(time.process_time())
    codes = codec.encode_batch(waveforms)
    marks.append(time.process_time())
    rows = (
        {
            "text": utterance.text,
            "task": utterance.task,
            "codes_FK": codes_FK.numpy().astype(np.uint16),
            "context_codes": [],
            "duration_seconds": clip.seconds,
            "text_changes": [],
        }
        for utterance, codes_FK, clip in zip(utterances, codes, decoded, strict=True)
    )
    write_prepared(rows, output, codec=codec, source="benchmark")
    marks.append(time.process_time())
    seconds = sum(clip.seconds for clip in decoded)
    costs = [(after - before) / seconds for before, after in itertools.pairwise(marks)]
    return dict(zip(("decode", "resample", "encode", "write"), costs, strict=True))


def time_prepare(manifest: Path, output: Path, num_processes: int) -> float:
    """Seconds from the first row to the finished dataset, by the slowest of the processes."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = str(listening.getsockname()[1])
    together = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, __file__, "--worker", "prepare", str(manifest), str(output)]
    processes = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ALONE | together | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(num_processes)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a process failed")
    return max(float(json.loads(output.splitlines()[-1])) for output in outputs)


def prepare_and_time(manifest: Path, output: Path) -> float:
    """The start of Python and the meeting of the processes are not counted."""
    with join_processes() as processes:
        processes.wait()
        start = time.perf_counter()
        prepare(manifest, output, codec="embedded", progress=skip_progress)
        return time.perf_counter() - start


def measure_reading(folder: Path) -> float:
    """Milliseconds for a clip of a prepared dataset, in random order: the best of five epochs."""
    rows = read_prepared(folder).rows
    order = random.Random(0).sample(range(len(rows)), len(rows))
    epochs = []
    for _ in range(5):
        start = time.process_time()
        for index in order:
            rows[index]
        epochs.append((time.process_time() - start) / len(order) * 1000)
    return min(epochs)


def measure_million(folder: Path, num_rows: int) -> tuple[float, float]:
    """Peak MB above that of the imports, and seconds, for a manifest of so many rows; in a process of its own."""
    (folder / "wav").mkdir()
    for index in range(MANIFEST_FILES):
        (folder / "wav" / f"{index}.wav").touch()
    with (folder / "m.jsonl").open("w", encoding="utf-8") as file:
        for index in range(num_rows):
            row = {
                "audio": f"wav/{index % MANIFEST_FILES}.wav",
                "text": f"the words of row {index}",
                "speaker": "s",
            }
            file.write(json.dumps(row) + "\n")
    command = [sys.executable, __file__, "--worker", "rows", str(folder / "m.jsonl"), str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | ALONE)
    peak_mb, seconds = json.loads(done.stdout.splitlines()[-1])
    return peak_mb, seconds


def read_and_share(manifest: Path, folder: Path) -> tuple[float, float]:
    """Check every row and read the share of one process of two, as `prepare` does it."""
    baseline_mb = read_peak_mb()
    start = time.perf_counter()
    work = WorkDirectory(folder / "prepared")
    with work.lock():
        store_rows(check_rows(open_source(manifest)), work)
        with work.open_tables() as tables:
            for _ in tables.iterate_rows(index=0, count=2):
                pass
    seconds = time.perf_counter() - start
    return read_peak_mb() - baseline_mb, seconds


def read_peak_mb() -> float:
    """Of this process alone: `ru_maxrss` keeps that of the process that started it, and would hide what is smaller."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(folder: Path, num_rows: int) -> dict[str, float]:
    """Everything, printed as it comes."""
    manifest = write_corpus(folder)
    costs = measure_stages(manifest, folder / "stages")
    print(f"{'stage':10}{'s of sound / s':>16}{'share':>8}")
    for stage, cost in costs.items():
        print(f"{stage:10}{1 / cost:16.0f}{cost / sum(costs.values()):8.1%}")
    print(f"the codec's share: {costs['encode'] / sum(costs.values()):.1%}")

    one, two = (time_prepare(manifest, folder / f"by_{count}", count) for count in (1, 2))
    print(f"prepare: {one:.1f} s by one process, {two:.1f} s by two: {one / two:.2f}x")

    prepared = read_prepared(folder / "by_1")
    read_ms = measure_reading(folder / "by_1")
    clip_seconds = prepared.card.hours * 3600 / prepared.card.utterances
    encode_ms = clip_seconds * sum(costs[stage] for stage in ("decode", "resample", "encode")) * 1000
    print(
        f"a clip of {clip_seconds:.1f} s: {read_ms:.3f} ms to read, {encode_ms:.0f} ms to encode again: "
        f"{encode_ms / read_ms:.0f}x"
    )

    (folder / "rows").mkdir()
    peak_mb, seconds = measure_million(folder / "rows", num_rows)
    print(f"{num_rows:,} rows checked in {seconds:.0f} s with {peak_mb:.1f} MB above the imports")
    return {
        "two_process_speedup": round(one / two, 3),
        "read_ms_per_clip": round(read_ms, 4),
        "reencode_over_read": round(encode_ms / read_ms, 1),
        "million_row_peak_mb": round(peak_mb, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the large manifest")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON in the last line")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.worker:
        kind, manifest, output = arguments.worker
        worker = {"prepare": prepare_and_time, "rows": read_and_share}[kind]
        print(json.dumps(worker(Path(manifest), Path(output))))
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments.rows)
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
