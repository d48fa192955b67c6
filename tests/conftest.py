"""What holds for every test: no network, one thread, caches of its own. Set before anything heavy is imported."""

import gc
import os
import socket
from pathlib import Path
from typing import Any

_CACHE = Path(__file__).resolve().parents[1] / ".pytest_cache"

os.environ.update(
    CUDA_VISIBLE_DEVICES="",
    HF_DATASETS_OFFLINE="1",
    HF_HOME=str(_CACHE / "huggingface"),
    HF_HUB_OFFLINE="1",
    MKL_NUM_THREADS="1",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    TRANSFORMERS_OFFLINE="1",
    WANDB_MODE="disabled",
    XDG_CACHE_HOME=str(_CACHE / "cache"),
)

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that reaches for the network; sockets on this machine stay allowed."""
    connect = socket.socket.connect

    def connect_locally(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            pytest.fail(f"a test tried to reach the network: {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    """Start each test from the same random state, whatever ran before it."""
    torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """Trainer collects garbage at every start and end; what the imports made need not be looked at each time."""
    gc.collect()
    gc.freeze()
