"""What FSDP and DeepSpeed change about a trainer, as far as one process shows it."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, StateDictType

from higgs_trainer.errors import UserError
from higgs_trainer.training.sharding import ShardedTraining, allocate_parameters, set_up_plugin


class LaunchedForDeepspeed(SimpleNamespace):
    is_deepspeed_enabled, is_fsdp_enabled = True, False

    def create_accelerator_and_postprocess(self) -> None:
        pass


class Trainer(ShardedTraining, LaunchedForDeepspeed):
    pass


def test_deepspeed_is_refused_because_its_gradients_cannot_be_checked() -> None:
    with pytest.raises(UserError, match="a gradient that is not finite can be seen"):
        Trainer().create_accelerator_and_postprocess()


def test_the_plugin_adds_up_in_float32_and_writes_shards_whatever_the_launch_file_says() -> None:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="FULL_STATE_DICT")
    plugin.set_mixed_precision("bf16")
    set_up_plugin(plugin)
    assert plugin.mixed_precision_policy == MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.bfloat16
    )
    assert plugin.state_dict_type == StateDictType.SHARDED_STATE_DICT
    assert not getattr(plugin.state_dict_config, "rank0_only", False)


def test_parameters_on_the_meta_device_get_memory_of_their_own_and_shared_ones_stay_shared() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 7), nn.Linear(7, 7, dtype=torch.bfloat16))
    model[1].weight = model[2].weight
    model[0].bias.requires_grad_(False)
    model.append(nn.Linear(3, 3))
    kept = model[3].weight
    allocate_parameters(model)
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    assert len(set(addresses)) == len(addresses)
    assert model[1].weight is model[2].weight
    assert model[3].weight is kept
    assert [parameter.requires_grad for parameter in model[0].parameters()] == [True, False]
    assert model[2].bias.dtype == torch.bfloat16
