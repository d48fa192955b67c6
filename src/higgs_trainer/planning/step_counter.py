"""Count what a training step on fake tensors would hold in memory, compute and move.

A fake tensor has a shape, a dtype and a life, but no memory. The counter sees every operation of the real code, adds up
the bytes of the tensors that are alive, and keeps the largest sum, divided by what the bytes are for.
"""

import weakref
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

WEIGHTS = "frozen weights"
TRAINED = "trained parameters"
GRADIENTS = "gradients"
OPTIMIZER = "optimizer state"
KEPT = "kept for the backward"
LOGITS = "logits and loss"
WORKSPACE = "workspace"
PARTS = (WEIGHTS, TRAINED, GRADIENTS, OPTIMIZER, KEPT, LOGITS, WORKSPACE)
"""What the memory of a step is for, in the order in which it is shown."""

_ATEN = torch.ops.aten

KERNEL_BYTES = 1_000_000
"""What oneDNN keeps for each shape of a bfloat16 product on a CPU: 0.2 to 2.1 MB for 120 shapes, 1.1 MB on average."""
MOST_KERNELS = 1024
"""It keeps so many, and forgets those that were not used for longest."""

READ_LITTLE = (
    _ATEN.embedding.default,
    _ATEN.new_zeros.default,
    _ATEN.new_empty.default,
    _ATEN.zeros_like.default,
)
"""Operations that read little of their arguments, or only their shape."""


@dataclass
class StepCounts:
    """What a step holds, computes and moves.

    Attributes:
        peaks: region of the step -> part -> bytes, at the moment of the region at which most bytes are alive.
        flops: dtype of a matrix product -> floating-point operations.
        traffic_bytes: bytes that all other operations read and write.
        launches: operations that would start a kernel on a GPU.
        state_bytes_8bit: what the state of an 8-bit AdamW would take.
        layer_values, other_values: the number of parameters in a decoder layer, and of those in no layer.
    """

    peaks: dict[str, dict[str, float]] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    traffic_bytes: float = 0.0
    launches: float = 0.0
    state_bytes_8bit: float = 0.0
    layer_values: float = 0.0
    other_values: float = 0.0


class StepCounter(TorchDispatchMode):
    """Watch every operation on fake tensors within the context.

    Attributes:
        part: what a tensor that is made now is for.
        region: where in the step the work is now. Each region has a peak of its own.
        events: every allocation and every release, as `heap.py` takes them. None: they are not recorded.
        product_shapes: the shapes of all products in bfloat16, for each of which a CPU keeps a kernel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.part = WORKSPACE
        self.region = "forward"
        self.live_bytes: Counter[str] = Counter()
        self.events: list[int] | None = None
        self.product_shapes: set[tuple[Any, ...]] = set()
        self._num_allocations = 0
        self._storages: dict[int, tuple[str, int, int]] = {}
        self._peaks: dict[str, dict[str, float]] = {}
        self._flops: defaultdict[str, float] = defaultdict(float)
        self._traffic_bytes = 0
        self._launches = 0

    def get_counts(self) -> StepCounts:
        """Return what was counted until now."""
        return StepCounts(dict(self._peaks), dict(self._flops), self._traffic_bytes, self._launches)

    def add(self, tensor: Tensor, part: str) -> None:
        """Count a tensor that exists already, or change what it is for."""
        if not isinstance(tensor, FakeTensor):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            known, num_bytes, number = self._storages[key]
            self.live_bytes[known] -= num_bytes
        else:
            num_bytes, number = storage.nbytes(), -1
            weakref.finalize(storage, self._forget, key)
            if self.events is not None:
                number = self._num_allocations
                self._num_allocations += 1
                self.events.append(num_bytes)
        self._storages[key] = (part, num_bytes, number)
        self.live_bytes[part] += num_bytes

    def record(self, tensor: Tensor) -> None:
        """Record the allocation of a tensor that is counted already."""
        assert self.events is not None
        part, num_bytes, _ = self._storages[key := tensor.untyped_storage()._cdata]
        self._storages[key] = (part, num_bytes, self._num_allocations)
        self._num_allocations += 1
        self.events.append(num_bytes)

    def _record_kernel(self, given: list[Tensor]) -> None:
        """Record the kernel that oneDNN makes and keeps for a product of a shape that is new."""
        shape = tuple(tuple(tensor.shape) for tensor in given)
        if self.events is not None and given[0].dtype == torch.bfloat16 and shape not in self.product_shapes:
            self.product_shapes.add(shape)
            self._num_allocations += 1
            self.events.append(KERNEL_BYTES)

    def change_part(self, old: str, new: str) -> None:
        """Change what all tensors of a part are for."""
        for key, (part, num_bytes, number) in self._storages.items():
            if part == old:
                self._storages[key] = (new, num_bytes, number)
        self.live_bytes[new] += self.live_bytes.pop(old, 0)

    def enter(self, region: str) -> None:
        """Begin another region of the step."""
        self.region = region
        self._measure()

    def _forget(self, key: int) -> None:
        part, num_bytes, number = self._storages.pop(key)
        self.live_bytes[part] -= num_bytes
        if self.events is not None and number >= 0:
            self.events.append(-1 - number)

    def _measure(self) -> None:
        peak = self._peaks.get(self.region)
        if peak is None or sum(self.live_bytes.values()) > sum(peak.values()):
            self._peaks[self.region] = {part: float(self.live_bytes[part]) for part in PARTS}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _ATEN._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            # A value that the code asks for, such as whether the loss is finite.
            return 1
        if func is _ATEN.index.Tensor:
            args = (args[0], list(_find_true(args[1])))
        result = func(*args, **kwargs)
        is_new = False
        for tensor in tree_leaves(result):
            if isinstance(tensor, FakeTensor) and tensor.untyped_storage()._cdata not in self._storages:
                self.add(tensor, self.part)
                is_new = True
        if is_new:
            self._measure()
        self._count_work(func, args, kwargs, result)
        return result

    def _count_work(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        given = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)]
        made = [tensor for tensor in tree_leaves(result) if isinstance(tensor, FakeTensor)]
        if not made or not any(isinstance(tensor, FakeTensor) for tensor in given) or _is_view(func):
            return
        self._launches += 1
        count = FLOPS.get(func._overloadpacket)
        if count is None:
            moved = made if func in READ_LITTLE else (*given, *made)
            self._traffic_bytes += sum(tensor.numel() * tensor.element_size() for tensor in moved)
        else:
            dtype = str(given[0].dtype).removeprefix("torch.")
            self._record_kernel(given)
            self._flops[dtype] += count(*args, **kwargs, out_val=result)


def _find_true(indices: Any) -> Iterator[Any]:
    """Yield indices in place of masks. The values of a mask are real, so the number of its rows is known."""
    for index in indices:
        if isinstance(index, Tensor) and index.dtype == torch.bool and not isinstance(index, FakeTensor):
            yield from index.nonzero(as_tuple=True)
        else:
            yield index


def _is_view(func: Any) -> bool:
    """Whether an operation returns a part of its argument, and moves nothing."""
    aliases = [returned.alias_info for returned in func._schema.returns]
    return func in (_ATEN._unsafe_view.default, _ATEN.detach.default) or any(
        alias is not None and not alias.is_write for alias in aliases
    )


def _count_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> int:
    """Count the operations of causal attention, as torch does, which takes it as not causal."""
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _count_attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> int:
    return int(sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape))


FLOPS: dict[Any, Any] = {
    **flop_registry,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _count_attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _count_attention_backward,
}
"""How many floating-point operations an operation takes: those that torch knows, and the attention of a CPU."""


@contextmanager
def counting_gradients(counter: StepCounter, model: nn.Module) -> Iterator[None]:
    """Count the gradient of a parameter as one as soon as it is complete."""

    def add(parameter: Tensor) -> None:
        assert parameter.grad is not None
        counter.add(parameter.grad, GRADIENTS)

    handles = [
        parameter.register_post_accumulate_grad_hook(add)
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    yield
    for handle in handles:
        handle.remove()
