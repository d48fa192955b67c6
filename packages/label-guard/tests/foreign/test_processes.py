"""``python -m label_guard`` on a script of TRL in new processes, also with the launchers of accelerate and torch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCRIPT = str(HERE / "sft_script.py")
BIN = Path(sys.executable).parent


def run(*command: str, exit_code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"EXIT_CODE": str(exit_code)}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def find_free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.fixture(scope="module")
def unguarded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the script prints without the guard."""
    ended = run(sys.executable, SCRIPT, str(tmp_path_factory.mktemp("unguarded")))
    assert (ended.returncode, len(ended.stdout.splitlines())) == (0, 6), ended.stderr
    return ended.stdout


@pytest.mark.parametrize("leak", [(), ("--leak",)], ids=["clean", "leak"])
def test_the_script_prints_the_same_bytes_and_ends_with_its_own_code(
    leak: tuple[str, ...], tmp_path: Path, unguarded: str
) -> None:
    report = tmp_path / "report.json"
    options = ("-m", "label_guard", "--report", str(report))
    ended = run(sys.executable, *options, SCRIPT, str(tmp_path), *leak, exit_code=5)
    assert ended.stdout == unguarded
    assert ended.returncode == 5
    (model,) = json.loads(report.read_text())["models"]
    assert model["name"] == "PeftModelForCausalLM in SFTTrainer"
    assert [(found["key"], found["count"]) for found in model["report"]["leaks"]] == (
        [("emotion_labels", 3)] if leak else []
    )
    assert ("emotion_labels <- pre-hook" in ended.stderr) == bool(leak)


LAUNCHERS = {
    "accelerate": (str(BIN / "accelerate"), "launch", "--cpu", "--num_processes", "1", "--num_machines", "1"),
    "torchrun": (str(BIN / "torchrun"), "--nproc_per_node", "1", "--master_addr", "127.0.0.1"),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_runs_it_with_dash_m(launcher: str, tmp_path: Path, unguarded: str) -> None:
    command = LAUNCHERS[launcher]
    if launcher == "torchrun":
        command += ("--master_port", find_free_port())
    ended = run(*command, "-m", "label_guard", "--policy", "watch", SCRIPT, str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == unguarded
    assert "label-guard: PeftModelForCausalLM in SFTTrainer" in ended.stderr


def test_of_two_processes_only_the_first_rank_prints(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = (*LAUNCHERS["torchrun"], "--nproc_per_node", "2", "--master_port", find_free_port())
    options = ("-m", "label_guard", "--report", str(report))
    ended = run(*command, *options, SCRIPT, str(tmp_path), "--leak")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("label-guard: PeftModelForCausalLM in SFTTrainer") == 1
    (model,) = json.loads(report.read_text())["models"]
    assert [found["count"] for found in model["report"]["leaks"]] == [3]
