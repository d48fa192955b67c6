"""Choose the dtype in which the weights of a model are loaded, and keep the trained ones in float32.

In bfloat16, an update of less than 0.4% of a weight is lost in rounding, and with the learning rates that fine-tuning
uses most updates are smaller. So frozen weights may be bfloat16, but trained weights are float32.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from higgs_trainer.files import read_json_object
from higgs_trainer.model.model_files import SETTINGS
from higgs_trainer.model.model_folder import find_folder
from higgs_trainer.run_folder import MODEL_CONFIG

AUTO = "auto"
"""The dtype of the model's own files if that is bfloat16, else float32."""


def choose_dtype(name_or_path: str | Path, dtype: str = AUTO) -> str:
    """Return the dtype in which a model is loaded: the given one or, for "auto", bfloat16 if its config.json says so.

    A model that is stored in float16 is loaded in float32: float16 saves space in a file, but its largest value,
    65,504, is too small for the activations of a model that was trained in another dtype.

    Raises:
        CheckpointError: there is no such model.
        UserError: its config.json is damaged.
    """
    if dtype != AUTO:
        return dtype
    values = read_json_object(find_folder(name_or_path, SETTINGS) / MODEL_CONFIG)
    # transformers before version 5 wrote torch_dtype.
    return "bfloat16" if "bfloat16" in (values.get("dtype"), values.get("torch_dtype")) else "float32"


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
