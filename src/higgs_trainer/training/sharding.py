"""Train with FSDP2, which spreads parameters, gradients and optimizer state over the processes.

accelerate wraps the model. A checkpoint has the shards of all processes (torch's distributed checkpoint), so that no
process ever holds the whole state. The weights are gathered once, for the result.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from peft import PeftModel
from torch import Tensor, nn

from higgs_trainer.errors import UserError
from higgs_trainer.model.precision import round_weights
from higgs_trainer.training.trainer_base import TrainerBase

SHARDS = "SHARDED_STATE_DICT"


class ShardedTraining(TrainerBase):
    """Mixin for a Trainer that FSDP2 may shard: ``class T(CompleteCheckpoints, ShardedTraining, Trainer)``.

    Without FSDP it changes nothing.
    """

    _is_in_checkpoint = False
    _result_dtype: torch.dtype | None = None

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator, then decide how gradients are added up and how checkpoints are written.

        Raises:
            UserError: the launcher asks for DeepSpeed.
        """
        super().create_accelerator_and_postprocess()
        if self.is_deepspeed_enabled:
            # Not at the top: Boson's environment has no pydantic.
            from higgs_trainer.recipe.training_fields import DEEPSPEED, SHARDED_LAUNCH

            raise UserError(f"{DEEPSPEED}. Spread the model with FSDP2: {SHARDED_LAUNCH}")
        if self.is_fsdp_enabled:
            set_up_plugin(self.accelerator.state.fsdp_plugin)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Build the optimizer, for parameters that have memory."""
        if self.is_fsdp_enabled:
            allocate_parameters(self.model)
        return super().create_optimizer(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Gather the trained weights and save them. Every process must call this.

        In a checkpoint only the weights of an adapter are gathered: those of a whole model are in its shards.
        """
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        folder = output_dir or self.args.output_dir
        if self._is_in_checkpoint and not isinstance(self.model, PeftModel):
            if self.args.should_save:
                for settings in (self.model.config, self.model.generation_config, self.processing_class):
                    settings.save_pretrained(folder)
        else:
            self._save_gathered(folder)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_gathered(self, folder: str) -> None:
        dtype = self._result_dtype
        self._save(folder, state_dict=gather_weights(self.model, dtype))
        if dtype is not None and self.args.should_save:
            # transformers has written the dtype of the shards.
            self.model.config.dtype = dtype
            self.model.config.save_pretrained(folder)

    def round_weights(self, dtype: str) -> None:
        """Round the weights for the result, which is saved next. They are trained no further."""
        if self.is_fsdp_enabled:
            # FSDP keeps the shards, so they are rounded when they are gathered.
            self._result_dtype = getattr(torch, dtype)
        else:
            round_weights(self.model, dtype)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Let Trainer save a checkpoint, with the weights in shards."""
        with self._in_checkpoint():
            super()._save_checkpoint(model, trial)

    @contextmanager
    def _in_checkpoint(self) -> Iterator[None]:
        self._is_in_checkpoint = True
        try:
            yield
        finally:
            self._is_in_checkpoint = False


def set_up_plugin(plugin: FullyShardedDataParallelPlugin) -> None:
    """Add gradients up in float32, and write checkpoints in shards, whatever the launch file says.

    accelerate would add up in the dtype of the products: with bfloat16, a sum over eight processes loses its last bits.
    Gathered checkpoints would be pickles, which one process holds whole in its memory.
    """
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, reduce_dtype=torch.float32)
    # Otherwise the settings of gathered checkpoints would stay.
    plugin.state_dict_config = plugin.optim_state_dict_config = None
    plugin.set_state_dict_type(SHARDS)


def allocate_parameters(model: nn.Module) -> None:
    """Give parameters on the meta device memory on the CPU, which nothing writes to: the system need not provide it.

    accelerate finds the sharded parameter of each one in the optimizer by its address. On the meta device all have the
    same address, so that the optimizer of such a process would silently train one parameter only.
    """
    allocated: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.is_meta:
                continue
            # One that two modules share stays shared.
            if parameter not in allocated:
                memory = torch.empty_like(parameter, device="cpu")
                allocated[parameter] = nn.Parameter(memory, requires_grad=parameter.requires_grad)
            setattr(module, name, allocated[parameter])


def reshard(model: nn.Module) -> None:
    """Free what the last forward has gathered. Otherwise the root keeps its weights until the next backward pass."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def gather_weights(model: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Gather the weights of a sharded model in the memory of the first process; of an adapter, the trained ones only.

    Every process must call this. The others get an empty dict.

    Args:
        dtype: round the weights to this dtype.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(
        full_state_dict=True, cpu_offload=True, ignore_frozen_params=isinstance(model, PeftModel)
    )
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    for name in weights if dtype is not None else ():
        weights[name] = weights[name].to(dtype)
    return weights
