"""Run a training step of the real code on fake tensors: forward, loss, backward, clipping and optimizer.

The model has few layers, because all layers are alike: `layer_scaling.py` derives what the whole model would need.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate.utils.operations import convert_outputs_to_fp32
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel, Trainer, TrainingArguments

from higgs_trainer.model.indexed_layers import index_layers
from higgs_trainer.model.loading import Checkpoint
from higgs_trainer.model.precision import keep_trained_in_float32
from higgs_trainer.planning.optimizers import EIGHT_BIT, RUNNABLE, count_state_bytes
from higgs_trainer.planning.pack_shape import BatchShape, build_batch
from higgs_trainer.planning.quantized_layers import NF4_BYTES, quantize_layers
from higgs_trainer.planning.step_counter import (
    GRADIENTS,
    KEPT,
    LOGITS,
    OPTIMIZER,
    TRAINED,
    WEIGHTS,
    WORKSPACE,
    StepCounter,
    StepCounts,
    counting_gradients,
)
from higgs_trainer.recipe.schema import Recipe
from higgs_trainer.run.trainable import choose_trainable
from higgs_trainer.training.losses import (
    compute_audio_loss,
    compute_cross_entropy_sums,
    count_cells,
    count_correct_first,
)

FIRST_UPDATE = "first update"
"""The region in which the optimizer makes its state. It counts twice there."""


@dataclass(frozen=True)
class FakeRun:
    """What a fake step needs.

    Attributes:
        recipe: the recipe, with a dtype that is not "auto".
        outline: the model of the recipe on the meta device, with all its layers.
        arguments: the arguments of Trainer.
        has_text_head: whether the model is loaded with its head over text.
        on_cpu: whether the training runs on a CPU.
    """

    recipe: Recipe
    outline: Checkpoint
    arguments: TrainingArguments
    has_text_head: bool
    on_cpu: bool

    @property
    def num_layers(self) -> int:
        """The number of decoder layers of the model."""
        return int(self.outline.model.config.get_text_config().num_hidden_layers)


def count_step(run: FakeRun, shape: BatchShape, num_layers: int) -> StepCounts:
    """Count a step of the run's model, with fewer layers, on a batch of this shape.

    The state of the optimizer counts in every region, because it exists from the second step on.
    """
    model, counter, trained = _prepare(run, num_layers)
    if run.arguments.gradient_accumulation_steps > 1:
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
            counter.add(parameter.grad, GRADIENTS)
    with counter, counting_gradients(counter, model), _watching_layers(counter, model, num_layers):
        _run_batch(run, model, shape, counter)
        optimizer = _build_optimizer(run, model, trained)
        state_bytes = _update(run, trained, optimizer, counter)
    counts = counter.get_counts()
    counts.peaks.pop(FIRST_UPDATE, None)
    for parts in counts.peaks.values():
        parts[OPTIMIZER] = state_bytes
    counts.state_bytes_8bit = count_state_bytes(EIGHT_BIT, trained)
    layers, every = find_layers(model, num_layers), sum(map(_count_values, model.parameters()))
    counts.layer_values = sum(map(_count_values, layers[0].parameters()))
    counts.other_values = every - num_layers * counts.layer_values
    return counts


def list_allocations(
    run: FakeRun, shapes: Sequence[BatchShape], *, stored_dtype: str
) -> tuple[list[int], int]:
    """List the allocations of a few steps of the whole model, one for each batch, as `heap.py` takes them.

    Args:
        stored_dtype: weights that keep the dtype of their file are mapped, not allocated.

    Returns:
        The allocations, and the number of kernels among them.
    """
    model, counter, trained = _prepare(run, run.num_layers)
    counter.events = []
    for parameter in model.parameters():
        if parameter.requires_grad or str(parameter.dtype) != f"torch.{stored_dtype}":
            counter.record(parameter)
    optimizer = None
    with counter:
        for shape in shapes:
            counter.region = "forward"
            _run_batch(run, model, shape, counter)
            optimizer = optimizer or _build_optimizer(run, model, trained)
            torch.nn.utils.clip_grad_norm_(trained, run.arguments.max_grad_norm or 1.0)
            if optimizer is not None:
                optimizer.step()
            model.zero_grad()
    return list(counter.events), len(counter.product_shapes)


def _prepare(run: FakeRun, num_layers: int) -> tuple[PreTrainedModel, StepCounter, list[Tensor]]:
    """Return the fake model, a counter that knows its tensors, and the trained parameters."""
    model = build_fake_model(run, num_layers)
    counter = StepCounter()
    for tensor in (*model.parameters(), *model.buffers()):
        counter.add(tensor, TRAINED if tensor.requires_grad else WEIGHTS)
    return model, counter, [parameter for parameter in model.parameters() if parameter.requires_grad]


def build_fake_model(run: FakeRun, num_layers: int) -> PreTrainedModel:
    """Build the model of fake tensors as a run builds it, with its adapter and dtypes."""
    recipe, outline = run.recipe, run.outline
    config = copy.deepcopy(outline.model.config)
    config.get_text_config().num_hidden_layers = num_layers
    dtype = getattr(torch, recipe.model.dtype)
    with torch.device("meta"):
        model = type(outline.model)(config, use_text_head=run.has_text_head)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    adapter = recipe.adapter
    if adapter is not None:
        # Other initial values are computed from the weights.
        adapter = adapter.model_copy(update={"init_lora_weights": True})
    if recipe.model.quantization:
        quantize_layers(model, dtype)
    trained = choose_trainable(replace(outline, model=model), adapter, recipe.model.freeze).model
    keep_trained_in_float32(trained)
    _become_fake(trained)
    if run.on_cpu and recipe.model.indexed_layers:
        index_layers(trained)
    if recipe.training.gradient_checkpointing:
        trained.gradient_checkpointing_enable(run.arguments.gradient_checkpointing_kwargs)
    return trained.train()


def _become_fake(model: nn.Module) -> None:
    """Replace the tensors of a model on the meta device by fake tensors on a CPU, and keep tied parameters tied."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
    for first, *others in names.values():
        for other in others:
            path, _, attribute = other.rpartition(".")
            setattr(model.get_submodule(path), attribute, model.get_parameter(first))


def _run_batch(run: FakeRun, model: PreTrainedModel, shape: BatchShape, counter: StepCounter) -> None:
    """Run forward, loss and backward of a batch, as `HiggsAudioTrainer.compute_guarded_loss` does."""
    arguments, ids = run.arguments, run.outline.stream_ids
    inputs, targets_NK = build_batch(shape, ids)
    forward = model
    if arguments.bf16 or arguments.fp16:
        autocast = torch.autocast("cpu", torch.bfloat16)
        # accelerate wraps the forward in these two.
        forward = convert_outputs_to_fp32(autocast(model.__call__))
    counter.part = KEPT
    logits = forward(**inputs).logits
    N, K = targets_NK.shape
    logits_NKC = logits.reshape(N, K, -1)
    del logits
    count_correct_first(logits_NKC, targets_NK)
    sums_K = compute_cross_entropy_sums(
        logits_NKC, targets_NK, label_smoothing=arguments.label_smoothing_factor, overwrite=True
    )
    loss = compute_audio_loss(sums_K, count_cells(targets_NK), (1.0,) * K)
    del logits_NKC, sums_K
    counter.part = WORKSPACE
    counter.enter("backward of the loss")
    loss.backward()


def _build_optimizer(run: FakeRun, model: nn.Module, trained: list[Tensor]) -> torch.optim.Optimizer | None:
    """Build the optimizer, or return None if it is not torch's own."""
    name = get_optimizer_name(run.arguments)
    if name not in RUNNABLE:
        return None
    optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(run.arguments, model)
    optimizer: torch.optim.Optimizer = optimizer_class(trained, **options)
    return optimizer


def _update(
    run: FakeRun, trained: list[Tensor], optimizer: torch.optim.Optimizer | None, counter: StepCounter
) -> float:
    """Update the parameters, once the state of the optimizer exists. Return the bytes of the state."""
    counter.enter("clipping")
    torch.nn.utils.clip_grad_norm_(trained, run.arguments.max_grad_norm or 1.0)
    if optimizer is None:
        return count_state_bytes(get_optimizer_name(run.arguments), trained)
    counter.enter(FIRST_UPDATE)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    tensors = [value for value in states if isinstance(value, Tensor)]
    for tensor in tensors:
        counter.add(tensor, OPTIMIZER)
    counter.enter("optimizer")
    optimizer.step()
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def get_optimizer_name(arguments: TrainingArguments) -> str:
    """Return the name of the optimizer, as a recipe has it."""
    return str(getattr(arguments.optim, "value", arguments.optim))


@contextmanager
def _watching_layers(counter: StepCounter, model: PreTrainedModel, num_layers: int) -> Iterator[None]:
    """Tell the counter in which layer the work is.

    The backward of the last layer, in which all activations are still kept, and that of the first, in which all
    gradients exist, are regions of their own: the peak is in one of them, or before the first or after the last.
    """
    layers = find_layers(model, num_layers)
    names = {num_layers - 1: "backward of the last layer", 0: "backward of the first layer"}

    def enter(region: str, gradient: Tensor) -> None:
        counter.enter(region)

    def watch(number: int, module: nn.Module, args: Any, output: Any) -> None:
        # Under checkpointing, layers run again in the backward.
        if counter.region != "forward":
            return
        states = output[0] if isinstance(output, tuple) else output
        states.register_hook(partial(enter, names.get(number, "backward of a layer")))
        if number == num_layers - 1:
            counter.part = LOGITS

    def watch_input(module: nn.Module, args: Any) -> None:
        if counter.region == "forward" and args and args[0].requires_grad:
            args[0].register_hook(partial(enter, "backward of the embeddings"))

    handles = [layer.register_forward_hook(partial(watch, number)) for number, layer in enumerate(layers)]
    handles.append(layers[0].register_forward_pre_hook(watch_input))
    yield
    for handle in handles:
        handle.remove()


def _count_values(parameter: Tensor) -> int:
    """Return the number of weights of a parameter. Those in 4 bits count as they are before and after a product."""
    return round(parameter.numel() / NF4_BYTES) if parameter.dtype == torch.uint8 else parameter.numel()


def find_layers(model: nn.Module, num_layers: int) -> nn.ModuleList:
    """Return the decoder layers of a model."""
    return next(
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers and num_layers
    )
