"""Settings of every test of the guard: no downloads, one thread, CPU, a fixed seed."""

import os
from pathlib import Path

os.environ.update(
    CUDA_VISIBLE_DEVICES="",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    TRANSFORMERS_OFFLINE="1",
    WANDB_MODE="disabled",
)

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Start each test from the same random state, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start each test in float32: `TrainingArguments` before transformers 5 leaves its precision in the environment."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


@pytest.fixture
def in_tests_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in the folder of the tests: the guard shortens the paths of files below the working directory."""
    monkeypatch.chdir(Path(__file__).parent)
