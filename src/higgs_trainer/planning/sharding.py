"""What the processes of a run on several GPUs hold, from what one process would hold."""

from higgs_trainer.planning.step_counter import (
    GRADIENTS,
    OPTIMIZER,
    TRAINED,
    WEIGHTS,
    WORKSPACE,
    StepCounts,
)

DDP = "DDP"
FSDP = "FSDP2"

SHARDED = (WEIGHTS, TRAINED, GRADIENTS, OPTIMIZER)

GATHERED_LAYERS = 2
"""FSDP gathers the layer at work and, at the same time, the next one."""


def shard(
    counts: StepCounts, parts: dict[str, float], num_gpus: int, *, value_bytes: int
) -> dict[str, float]:
    """Return what each of several GPUs holds under FSDP2: a share of the model, and gathered layers in full.

    Args:
        value_bytes: bytes of a gathered weight. Mixed precision gathers in bfloat16.
    """
    gathered = (GATHERED_LAYERS * counts.layer_values + counts.other_values) * value_bytes
    shares = {part: number / num_gpus if part in SHARDED else number for part, number in parts.items()}
    # The gradients of a layer are whole until they are reduced.
    whole = counts.layer_values * value_bytes if parts[GRADIENTS] > parts[WEIGHTS] else 0
    return shares | {WORKSPACE: parts[WORKSPACE] + gathered + whole}


def replicate(parts: dict[str, float]) -> dict[str, float]:
    """Return what each GPU holds under DDP: the whole model, and a second copy of the gradients in buckets."""
    return parts | {GRADIENTS: max(parts[GRADIENTS], parts[TRAINED]) * 2}
