"""The size of the state of optimizers that are not torch's own, and so cannot run on fake tensors."""

from collections.abc import Sequence

from torch import Tensor

RUNNABLE = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
"""The optimizers that are torch's own."""

EIGHT_BIT = "adamw_8bit"

BLOCK = 256
"""bitsandbytes keeps one float32 scale for so many values of an 8-bit state."""
SMALLEST_QUANTIZED = 4096
"""It keeps the state of smaller tensors in float32."""

STATES = {"adam": 2, "lamb": 2, "ademamix": 3, "lars": 1, "lion": 1, "rmsprop": 1, "adafactor": 0, "sgd": 0}
"""How many values an optimizer keeps for a parameter, by a part of its name. Adafactor keeps a row and a column."""


def count_state_bytes(name: str, trained: Sequence[Tensor]) -> float:
    """Return the bytes of the state of an optimizer on the GPU. One that is not known counts as AdamW in float32.

    Args:
        name: the name in ``training.optim``.
    """
    if name.startswith("paged_"):
        # It is in the memory of the host, and moved when it is needed.
        return 0.0
    known = [num for part, num in sorted(STATES.items(), key=lambda item: -len(item[0])) if part in name]
    num_states = known[0] if known else 2
    return float(sum(num_states * _count_bytes(tensor.numel(), "8bit" in name) for tensor in trained))


def _count_bytes(num_values: int, is_8bit: bool) -> float:
    if not is_8bit or num_values < SMALLEST_QUANTIZED:
        return 4.0 * num_values
    return num_values + 4.0 * num_values / BLOCK
