"""Record where a run was trained: versions and devices."""

import os
import platform
from importlib.metadata import version
from typing import Any

import torch
from accelerate import Accelerator

from higgs_trainer.version import __version__

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy")


def describe_environment(accelerator: Accelerator) -> dict[str, Any]:
    """Return Python, platform, devices and the versions of `PACKAGES`, as plain data for ``environment.json``."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device.type} ({name})",
        "processes": accelerator.num_processes,
        "distributed": accelerator.distributed_type.value,
        "mixed_precision": accelerator.mixed_precision,
        "cpu_threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "higgs_trainer": __version__,
        "packages": {package: version(package) for package in PACKAGES},
    }


def list_versions() -> dict[str, str]:
    """Return the versions on which the numbers of a run depend: this package and `PACKAGES`."""
    return {"higgs_trainer": __version__} | {package: version(package) for package in PACKAGES}
