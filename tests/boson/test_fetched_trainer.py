"""The public trainer of Higgs Audio, as it stands, trains under the guard what it trains without the leak.

Its code is not in this repository: ``docs/foreign_trainers.md`` says how to fetch a copy and to run these tests.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fetched_trainer.py")
COPY = os.environ["HIGGS_AUDIO_TRAINER"]
SOURCE = "labels <- PeftModelForCausalLM.forward (peft/peft_model.py:"


def run_trainer(*options: str, launcher: tuple[str, ...] = ()) -> tuple[list[str], str]:
    """Run the script. Returns its last lines that were printed to the standard output, and all that it printed."""
    command = [sys.executable, *launcher, str(SCRIPT), COPY, *options]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line for line in ended.stdout.splitlines() if line.startswith(("losses ", "moved "))]
    return lines, ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def expected() -> list[str]:
    """Losses and moved tensors with the class-level patch of that trainer, so without a leak."""
    lines, _ = run_trainer("--keep-patch")
    assert lines[1] == "moved 16 of 16"
    return lines


def test_without_patch_and_guard_it_trains_nothing_and_says_so_only_in_its_log() -> None:
    lines, printed = run_trainer()
    assert lines == ["losses 0.0000 0.0000 0.0000 0.0000", "moved 0 of 16"]
    assert "got an unexpected keyword argument 'labels'" in printed


@pytest.mark.parametrize("guard", ["mixin", "model"])
def test_one_line_makes_it_train_as_without_the_leak(guard: str, expected: list[str]) -> None:
    lines, printed = run_trainer("--guard", guard)
    assert lines == expected
    assert SOURCE in printed


def test_python_m_label_guard_makes_it_train_without_an_edit(expected: list[str]) -> None:
    lines, printed = run_trainer(launcher=("-m", "label_guard"))
    assert lines == expected
    assert SOURCE in printed


@pytest.mark.parametrize("launcher", [(), ("-m", "label_guard")], ids=["mixin", "launcher"])
def test_its_own_patch_and_the_guard_do_not_disturb_each_other(
    launcher: tuple[str, ...], expected: list[str]
) -> None:
    options = () if launcher else ("--guard", "mixin")
    lines, printed = run_trainer("--keep-patch", *options, launcher=launcher)
    assert lines == expected
    assert "clean" not in printed or "not watched" in printed
