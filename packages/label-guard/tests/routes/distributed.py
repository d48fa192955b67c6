"""The routes on two gloo processes: DDP in the Trainer, and torch's ``fully_shard`` in a training loop without one."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from catalogue import AFTER_4, COLUMNS, ONLY_5, RecordingLM, Route, lora, observe, run
from torch import nn

from label_guard import LabelGuard
from tiny_guarded import collate_with_labels, make_model, next_token_loss

RANKS = 2
DDP_ROUTES = [
    Route("DDP on two processes, collator adds `labels`", frozenset("12345"), collate=collate_with_labels),
    Route(
        "DDP on two processes, PEFT CAUSAL_LM",
        ONLY_5,
        why=AFTER_4,
        wrap=lora("CAUSAL_LM"),
    ),
]
SHARDED = "fully_shard on two processes, PEFT CAUSAL_LM"
SHARDED_WHY = "this training loop has no Trainer, so layer 5 is the only one"

Cells = dict[str, dict[str, str]]


def run_distributed(folder: Path) -> Cells:
    """Run the routes on two processes. Returns route -> column -> cell, which must be the same on both ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_work, args=(port, str(folder)), nprocs=RANKS)
    cells: list[Cells] = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]
    if cells[0] != cells[1]:
        raise AssertionError(f"the results of the two ranks differ: {cells}")
    return cells[0]


def _work(rank: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    cells: Cells = {}
    for route in DDP_ROUTES:
        outcomes = {column: run(route, "train", column, Path(folder)) for column in COLUMNS}
        if died := [outcome.died for outcome in outcomes.values() if outcome.died]:
            raise AssertionError(died)
        cells[route.name] = {column: outcome.cell for column, outcome in outcomes.items()}
    cells[SHARDED] = {column: _run_sharded(column) for column in ("none", "5", "all")}
    Path(folder, f"{rank}.json").write_text(json.dumps(cells))
    dist.barrier()
    # The caches of fully_shard keep the process group and its threads, and such a thread may abort Python at exit.
    os._exit(0)


def _run_sharded(column: str) -> str:
    """Run one step of a sharded model. In column 5 it is guarded before sharding, in ``all`` after."""
    base = make_model(RecordingLM)
    base.calls = []
    model = lora("CAUSAL_LM")(base)
    guard = LabelGuard(model) if column == "5" else None
    _shard(model, base)
    if column == "all":
        guard = LabelGuard(model)
    ids = torch.arange(14).reshape(2, 7)
    outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    next_token_loss(outputs, ids).backward()
    if guard is not None and not guard.is_attached(model):
        raise AssertionError("fully_shard removed the guard")
    return observe(base.calls).cell


def _shard(model: nn.Module, base: Any) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    mesh = init_device_mesh("cpu", (RANKS,))
    for block in base.transformer.h:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if not all(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise AssertionError("not sharded: a parameter is not a DTensor")
