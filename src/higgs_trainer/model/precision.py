"""Keep the trained weights of a model in float32, and round those of a result.

In bfloat16, an update of less than 0.4% of a weight is lost in rounding, and with the learning rates that fine-tuning
uses most updates are smaller. So frozen weights may be bfloat16, but trained weights are float32.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def keep_trained_in_float32(model: nn.Module) -> None:
    """Convert every trained parameter to float32, in place.

    PEFT does this for the matrices of LoRA, but not for ``modules_to_save``. Tied parameters stay tied. If frozen
    weights keep a narrower dtype, a module with converted weights still returns what they expect.
    """
    if any(_is_narrow(parameter) and not parameter.requires_grad for parameter in model.parameters()):
        for module in model.modules():
            own = module.parameters(recurse=False)
            narrow = next((one for one in own if _is_narrow(one) and one.requires_grad), None)
            if narrow is not None:
                module.register_forward_pre_hook(_convert_inputs)
                module.register_forward_hook(partial(_convert_output, narrow.dtype))
    for parameter in model.parameters():
        if parameter.requires_grad and _is_narrow(parameter):
            parameter.data = parameter.data.float()


def round_weights(model: nn.Module, dtype: str) -> None:
    """Round the weights of a model to a dtype, in place. They are trained no further."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))


def _is_narrow(parameter: nn.Parameter) -> bool:
    return parameter.dtype in (torch.bfloat16, torch.float16)


def _convert_inputs(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Convert the inputs of a module to the dtype of its weights. Under autocast, the operations do that."""
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    if not tensors or torch.is_autocast_enabled(tensors[0].device.type):
        return None
    dtype = next(module.parameters(recurse=False)).dtype
    return tuple(_convert(value, dtype) for value in inputs)


def _convert_output(dtype: torch.dtype, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    return _convert(output, dtype)


def _convert(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
