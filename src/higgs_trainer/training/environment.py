"""Record with which versions a run was trained."""

import platform
from importlib.metadata import version
from typing import Any

import torch
from accelerate import Accelerator

from higgs_trainer.version import __version__

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy")


def describe_environment(accelerator: Accelerator) -> dict[str, Any]:
    """Return how the run was distributed and all versions, as plain data for ``environment.json``.

    The file is shared with the model, so it tells nothing else about the machine.
    """
    versions = list_versions()
    return {
        "device": accelerator.device.type,
        "processes": accelerator.num_processes,
        "distributed": accelerator.distributed_type.value,
        "mixed_precision": accelerator.mixed_precision,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "higgs_trainer": versions.pop("higgs_trainer"),
        "packages": versions,
    }


def list_versions() -> dict[str, str]:
    """Return the versions on which the numbers of a run depend: this package and `PACKAGES`."""
    return {"higgs_trainer": __version__} | {package: version(package) for package in PACKAGES}
