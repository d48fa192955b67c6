"""Say at the end of a run what its guards found: a text for people, and a JSON file for programs."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from label_guard.guarded_run import GuardedRun

SCHEMA = "label-guard/run/1"

NOTHING_GUARDED = (
    "nothing was guarded: the script ran no Trainer and prepared no model with Accelerate in this process. "
    "Put `guard = LabelGuard(model)` into it"
)


def is_reporting_process() -> bool:
    """Whether this process is rank 0, or the only one."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return bool(distributed.get_rank() == 0)
    return os.environ.get("RANK", "0") == "0"


def format_run(run: GuardedRun) -> str:
    """Return the cascade table and the verdict of each model."""
    parts = [f"{model.name}\n{model.ledger.cascade()}" for model in run.models]
    parts += [f"not guarded: {failure}" for failure in run.failures]
    return "\n\n".join(f"label-guard: {part}" for part in parts or [NOTHING_GUARDED])


def describe_run(run: GuardedRun, command: list[str]) -> dict[str, Any]:
    """Return the run as plain data that ``json.dumps`` takes.

    ::

        {"schema": "label-guard/run/1", "command": [str], "policy": "divert" | "raise" | "watch",
         "models": [{"name": str, "report": the report of its ledger, see `Ledger.report`}],
         "not_guarded": [str]}
    """
    return {
        "schema": SCHEMA,
        "command": command,
        "policy": run.policy,
        "models": [{"name": model.name, "report": model.ledger.report()} for model in run.models],
        "not_guarded": run.failures or ([] if run.models else [NOTHING_GUARDED]),
    }


def write_json(path: str, value: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
    os.replace(temporary, path)
