"""Estimate the time of a training step on a GPU from what the step computes and moves."""

from higgs_trainer.planning.gpus import GPU
from higgs_trainer.planning.step_counter import StepCounts

PRODUCTS_SHARE = 0.75
"""The share of a GPU's peak that matrix products of this size reach. Assumed."""
BANDWIDTH_SHARE = 0.9
"""The share of the bandwidth that other operations reach. Assumed."""
LAUNCH_SECONDS = 10e-6
"""The time in which Python starts an operation. Assumed."""


def estimate_seconds(counts: StepCounts, gpu: GPU) -> float | None:
    """Return the seconds of forward and backward of one batch. None: the speed of the GPU is not known.

    On a GPU, the work of Python overlaps with that of the GPU only in part, so the times are added.
    """
    if gpu.tflops is None or gpu.tflops_float32 is None or gpu.bandwidth_gb_s is None:
        return None
    products = sum(
        number / ((gpu.tflops_float32 if dtype == "float32" else gpu.tflops) * 1e12 * PRODUCTS_SHARE)
        for dtype, number in counts.flops.items()
    )
    moves = counts.traffic_bytes / (gpu.bandwidth_gb_s * 1e9 * BANDWIDTH_SHARE)
    return products + moves + counts.launches * LAUNCH_SECONDS
