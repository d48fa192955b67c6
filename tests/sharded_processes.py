"""Train under FSDP2 on CPU processes, one run after another in the same processes, and record what is sharded.

accelerate launch --config_file recipes/launch/fsdp2.yaml tests/sharded_processes.py RUNS.json FOUND.json

RUNS.json has, by the name of each run, its recipe and the words after it.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, gather_object
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from higgs_trainer.recipe.reading import read_recipe
from higgs_trainer.run import assembly
from higgs_trainer.run.train import train


def call_cpus_gpus() -> None:
    """Let accelerate take a group of CPU processes for one of GPUs: for CPUs, it would silently use DDP."""
    build = PartialState.__init__

    def build_and_rename(self, *args, **kwargs):
        build(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = build_and_rename


class Record(TrainerCallback):
    """Records on which device the weights were loaded, and how the model is sharded when training begins."""

    def __init__(self) -> None:
        self.found = {}

    def load_model(self, *args, load=assembly.load_model, **kwargs):
        checkpoint = load(*args, **kwargs)
        self.found["loaded"] = sorted({p.device.type for p in checkpoint.model.parameters()})
        return checkpoint

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        parameters = list(model.parameters())
        policies = [m._get_fsdp_state()._mp_policy for m in model.modules() if isinstance(m, FSDPModule)]
        self.found |= {
            "unsharded": sum(not isinstance(p, DTensor) for p in parameters),
            "numbers": sum(p.to_local().numel() for p in parameters if isinstance(p, DTensor)),
            "all_numbers": sum(p.numel() for p in parameters),
            "layers": sum(type(m).__name__ == "FSDPHiggsAudioV2DecoderLayer" for m in model.modules()),
            "reduced": sorted({str(p.reduce_dtype) for p in policies}),
            "computed": sorted({str(p.param_dtype) for p in policies}),
            "trained": sorted({str(p.dtype) for p in parameters if p.requires_grad}),
        }


def main(runs: Path, output: Path) -> None:
    torch.set_num_threads(1)
    call_cpus_gpus()
    found = {}
    for name, (recipe, *words) in json.loads(runs.read_text()).items():
        record = Record()
        assembly.load_model = record.load_model
        train(read_recipe(recipe, words), callbacks=[record])
        found[name] = gather_object([record.found])
    if torch.distributed.get_rank() == 0:
        output.write_text(json.dumps(found))
    torch.distributed.barrier()
    # The caches of fully_shard keep the process group and its threads alive, which may abort Python at exit.
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
