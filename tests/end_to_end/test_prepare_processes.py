"""Several processes, and killed processes, write the same dataset as a single run."""

import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from higgs_trainer.audio.files import write_audio
from higgs_trainer.audio.mel_codec import MelCodec
from higgs_trainer.dataset.prepared import CARD_NAME, read_prepared

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 400  # for a busy machine
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node=2"],
    "accelerate": [
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes=2",
        "--main_process_port={port}",
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Create twelve recordings of noise, with four pairs of equal length, and a codec."""
    rows = []
    for index in range(12):
        write_audio(tmp_path / f"{index}.wav", torch.rand(4800 + 960 * (index % 8)) - 0.5)
        rows.append({"audio": f"{index}.wav", "text": f"number {index}", "speaker": "s"})
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    codec = MelCodec.fit([torch.randn(24_000) * 0.1], codebook_size=7, seed=0, name="tiny")
    codec.save_pretrained(tmp_path / "codec")
    return tmp_path


def find_free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def run_command(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command as `subprocess.run` does, but end its child processes with it, also after the timeout."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, err = process.communicate(timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()  # a launcher passes the signal to its child processes
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def run_prepare(folder: Path, output: str, launcher: str | None = None) -> subprocess.CompletedProcess[str]:
    launch = [part.format(port=find_free_port()) for part in LAUNCHERS[launcher]] if launcher else []
    command = [sys.executable, "-m", *launch, *(["-m"] if launch else []), "higgs_trainer", "prepare"]
    return run_command(
        [*command, str(folder / "m.jsonl"), "-o", str(folder / output), "--codec", str(folder / "codec")]
    )


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_write_the_dataset_of_one(folder: Path, launcher: str) -> None:
    alone = run_prepare(folder, "alone")
    assert alone.returncode == 0, alone.stderr
    together = run_prepare(folder, "together", launcher)
    assert together.returncode == 0, together.stderr
    assert together.stdout.count("12 utterances") == 1
    for name in [CARD_NAME, *(path.name for path in (folder / "alone").glob("*.arrow"))]:
        assert (folder / "alone" / name).read_bytes() == (folder / "together" / name).read_bytes()
    assert not list(folder.glob(".*.unfinished"))
    assert read_prepared(folder / "together").card.utterances == 12


@pytest.mark.slow
def test_two_processes_report_the_problems_of_one(folder: Path) -> None:
    (folder / "7.wav").write_bytes(b"no sound")
    before = sorted(folder.iterdir())
    refused = run_prepare(folder, "together", "torchrun")
    assert refused.returncode != 0
    assert refused.stderr.count("m.jsonl:8: 7.wav cannot be read as audio") == 1
    assert "HiggsTrainerError" not in refused.stderr
    assert sorted(folder.iterdir()) == before


@pytest.mark.slow
def test_a_run_that_is_killed_twice_writes_the_same_dataset() -> None:
    script = ROOT / "scripts" / "kill_prepare.py"
    done = run_command([sys.executable, str(script), "--kills", "2"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the dataset equals that of an undisturbed run" in done.stdout
