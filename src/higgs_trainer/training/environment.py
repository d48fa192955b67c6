"""Where a run ran: versions and devices, as one finds out afterwards only if they were written down."""

import os
import platform
from importlib.metadata import version

import torch
from accelerate import Accelerator

from higgs_trainer import __version__
from higgs_trainer.run_folder import Environment

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy")


def describe_environment(accelerator: Accelerator) -> Environment:
    """Python, platform, devices and the versions of `PACKAGES`, as plain data for ``environment.json``."""
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
