"""Merge an adapter into a base model one module at a time, so that one module at a time is in memory.

PEFT computes each module. The base model is on the meta device, where PEFT finds the modules that the adapter changes.
Each of them is then put with its weights into a model that contains nothing else, at the same path. In that model, PEFT
adds the adapter and merges it, as it would in the whole model.
"""

import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

from peft import PeftConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, float64, nn

from higgs_trainer.errors import CheckpointError
from higgs_trainer.model.adapters import plan_adapter
from higgs_trainer.model.loading import Checkpoint
from higgs_trainer.model.weight_files import (
    ADAPTER_WEIGHTS,
    COPY_AGAIN,
    StoredTensor,
    read_headers,
    read_tensor,
)
from higgs_trainer.tensors import list_not_finite

PREFIX = "base_model.model."
"""The beginning of names in the files of an adapter. The rest is the name of a module or a weight in the base model."""


class MergedWeights:
    """The weights of a base model with an adapter merged into it. `read` computes one when it is asked for.

    Args:
        base: the base model on the meta device, which stays as it is.
        stored: where each weight of the base model is.
        adapter: the folder of the adapter.

    Raises:
        CheckpointError: adapter and base do not fit, or the adapter cannot be merged.
    """

    def __init__(self, base: Checkpoint, stored: Mapping[str, StoredTensor], adapter: Path) -> None:
        self._base, self._stored, self._adapter = base, stored, adapter
        before = _list_shapes(base.model)
        adapted = plan_adapter(base.model, adapter)
        if not hasattr(adapted, "unload"):
            raise CheckpointError(_describe_refusal(adapter, "PEFT cannot merge this kind of adapter"))
        self._config: PeftConfig = adapted.peft_config["default"]
        self._initial_values = getattr(PeftConfig.from_pretrained(str(adapter)), "init_lora_weights", None)
        self._wraps_tokens = _find_adapted(adapted.get_base_model())
        adapted.unload()
        if changed := before.items() ^ _list_shapes(base.model).items():
            names = ", ".join(sorted({name for name, _ in changed}))
            raise CheckpointError(f"merging changed names or shapes of weights: {names}")
        self._of_adapter = read_headers([adapter / ADAPTER_WEIGHTS])
        self._module_of = {
            f"{path}.{name}": path
            for path in self._wraps_tokens
            for name in base.model.get_submodule(path).state_dict()
        }
        self._merged: dict[str, Tensor] = {}

    def read(self, name: str) -> Tensor:
        """Return a weight of the merged model. Those of modules that the adapter changes are float32.

        Raises:
            CheckpointError: PEFT cannot merge a module, or a weight of the base model is not finite.
        """
        if name in self._module_of:
            if name not in self._merged:
                self._merged = {}
                self._merged = self._merge(self._module_of[name])
            return self._merged[name]
        if (saved := self._of_adapter.get(PREFIX + name)) is not None:
            return _narrow(read_tensor(saved.file, PREFIX + name))
        return self._read_base(name)

    def _read_base(self, name: str) -> Tensor:
        weight = _narrow(read_tensor(self._stored[name].file, name))
        if list_not_finite({name: weight}):
            raise CheckpointError(
                f"{self._base.name_or_path} has weights that are not finite in float32: {name}. {COPY_AGAIN}"
            )
        return weight

    def _merge(self, path: str) -> dict[str, Tensor]:
        """Merge the adapter into the module at a path, and return its weights by their names in the whole model."""
        module = deepcopy(self._base.model.get_submodule(path))
        weights = {name: self._read_base(f"{path}.{name}").float() for name in module.state_dict()}
        module.load_state_dict(weights, assign=True)
        # Weights that belong to no module are shared by all of them.
        of_module = {
            name: read_tensor(tensor.file, name)
            for name, tensor in self._of_adapter.items()
            if name.startswith(f"{PREFIX}{path}.") or not name.startswith(PREFIX)
        }
        # PEFT warns of patterns that match nothing here, but match other modules.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                adapted = PeftModel(_put_at(path, module), self._configure(path))
                set_peft_model_state_dict(adapted, of_module)
                merged = adapted.merge_and_unload().get_submodule(path)
            except (ValueError, RuntimeError) as error:
                raise CheckpointError(_describe_refusal(self._adapter, error)) from error
        return {f"{path}.{name}": weight for name, weight in merged.state_dict().items()}

    def _configure(self, path: str) -> PeftConfig:
        """Return the configuration of the adapter for a model that has only the module at a path."""
        config = deepcopy(self._config)
        changes: dict[str, object] = {"modules_to_save": None, "trainable_token_indices": None}
        # PiSSA and OLoRA take a part of the base's weight away when they are initialized.
        changes["init_lora_weights"] = self._initial_values
        if self._wraps_tokens[path]:
            tokens = config.trainable_token_indices
            if isinstance(tokens, dict):
                tokens = {end: indices for end, indices in tokens.items() if path.endswith(end)}
            changes |= {"trainable_token_indices": tokens, "target_parameters": None}
            changes |= {"target_modules": DUMMY_TARGET_MODULES}
        for field, value in changes.items():
            if hasattr(config, field):
                setattr(config, field, value)
        return config


def _find_adapted(model: nn.Module) -> dict[str, bool]:
    """Find the modules that the adapter changes, but does not replace: path -> whether only rows of some tokens change.

    The modules inside them belong to PEFT.
    """
    found: dict[str, bool] = {}
    outer: tuple[str, ...] = ()
    for path, module in model.named_modules():
        if path.startswith(outer):
            continue
        is_wrapper = isinstance(module, AuxiliaryTrainingWrapper)
        if is_wrapper or isinstance(module, BaseTunerLayer):
            outer = (*outer, f"{path}.")
            if not isinstance(module, ModulesToSaveWrapper):
                found[path] = is_wrapper
    return found


def _put_at(path: str, module: nn.Module) -> nn.Module:
    """Build a model that has one module, at a path."""
    for name in reversed(path.split(".")):
        outer = nn.Module()
        outer.add_module(name, module)
        module = outer
    return module


def _list_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def _narrow(weight: Tensor) -> Tensor:
    """Round a weight that is wider than float32, in which the sum is computed."""
    return weight.float() if weight.dtype == float64 else weight


def _describe_refusal(adapter: Path, reason: object) -> str:
    return f"the adapter {adapter} cannot be merged ({reason}). Use it unmerged, with PEFT."
