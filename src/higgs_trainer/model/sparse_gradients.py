"""A sparse gradient of the text embedding between the micro-batches of a step.

A micro-batch has some hundred words of a vocabulary of ten thousands. Its gradient as a dense matrix is a block of
zeros as large as the embedding: each micro-batch fills one and adds it to the last. With torch's own
`nn.Embedding.sparse` the rows that were seen are collected instead, and made dense once, behind the step's last
micro-batch: clipping and every optimizer see an ordinary gradient.
"""

from collections.abc import Iterable

import torch
from torch import nn

DTYPES = (torch.float32, torch.float64)  # of others torch cannot add two sparse gradients, or not any two


def collect_sparsely(model: nn.Module) -> bool:
    """Let a text embedding that is trained in float32 have sparse gradients; returns whether there is one.

    One that PEFT wraps (``modules_to_save``) keeps dense ones.

    For one process on a CPU: DDP and FSDP want dense gradients. Who trains such a model calls `make_dense` behind each
    step's last micro-batch, as ``HiggsAudioTrainer`` does; torch's optimizers refuse sparse gradients otherwise.
    """
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    if not isinstance(embedding, nn.Embedding) or not embedding.weight.requires_grad:
        return False
    if embedding.weight.dtype not in DTYPES:
        return False
    embedding.sparse = True
    return True


def make_dense(parameters: Iterable[nn.Parameter]) -> None:
    """Replace sparse gradients by the dense ones that they stand for."""
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.to_dense()
