"""Memory, bandwidth and peak of GPUs, from the vendors' data sheets."""

import re
from dataclasses import dataclass

from higgs_trainer.errors import UserError, suggest_name


@dataclass(frozen=True)
class GPU:
    """One kind of GPU.

    Attributes:
        memory_gb: the memory that its name says. A card of "24 GB" has 24 GiB, which is 7% more; the difference is left
            for the driver and for gaps between tensors.
        bandwidth_gb_s: bytes that the memory reads or writes in a second. None: not known, so there is no time.
        tflops: matrix products of dense bfloat16 with float32 sums (float16 where a card has no bfloat16).
        tflops_float32: products in float32.
    """

    name: str
    memory_gb: float
    bandwidth_gb_s: float | None = None
    tflops: float | None = None
    tflops_float32: float | None = None


GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("T4", 16, 320, 65, 8.1),
        GPU("L4", 24, 300, 121, 30.3),
        GPU("A10", 24, 600, 125, 31.2),
        GPU("3060", 12, 360, 25.5, 12.7),
        GPU("3090", 24, 936, 71, 35.6),
        GPU("4080", 16, 717, 97.5, 48.7),
        GPU("4090", 24, 1008, 165, 82.6),
        GPU("5090", 32, 1792, 210, 104.8),
        GPU("A6000", 48, 768, 155, 38.7),
        GPU("6000-Ada", 48, 960, 364, 91.1),
        GPU("L40S", 48, 864, 362, 91.6),
        GPU("A100-40", 40, 1555, 312, 19.5),
        GPU("A100-80", 80, 2039, 312, 19.5),
        GPU("H100", 80, 3350, 989, 67),
        GPU("H200", 141, 4800, 989, 67),
        GPU("B200", 180, 8000, 2250, 75),
    )
}
"""The GPUs that are known by name. NVIDIA's data sheets; H100, H200 and A100 are the SXM versions."""


def find_gpu(text: str) -> GPU:
    """Return the GPU that a text names: a name of `GPUS`, or a size such as 24GB.

    Raises:
        UserError: it is neither.
    """
    if size := re.fullmatch(r"(\d+(?:\.\d+)?)\s*G(?:i?B)?", text.strip(), re.IGNORECASE):
        return GPU(f"{size[1]} GB", float(size[1]))
    wanted = _simplify(text)
    for name, gpu in GPUS.items():
        if wanted in (_simplify(name), _simplify(f"RTX {name}")):
            return gpu
    raise UserError(
        f'--gpu "{text}" is unknown. {suggest_name(text, list(GPUS))} Any other GPU: give its memory, such as 24GB.'
    )


def _simplify(name: str) -> str:
    return re.sub(r"nvidia|geforce|[^a-z0-9]", "", name.lower()).removesuffix("gb")
