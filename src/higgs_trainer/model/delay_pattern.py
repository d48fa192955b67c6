"""The delay pattern: codebook k is heard one column after codebook k - 1. Pure functions on tensors.

A clip of F frames and K codebooks becomes P = F + K + 1 columns. Codebook k of column p holds

    begin of stream   for p <= k
    code p - k - 1    for k < p <= F + k
    end of stream     for p > F + k

so that the model, writing one column at a time, knows the coarser codebooks of a frame when it writes a finer one.
The layout is that of transformers' ``HiggsAudioV2Processor`` (and of Boson's collator), cell by cell.
"""

import torch
from torch import Tensor

from higgs_trainer.tensors import IGNORED


def count_columns(num_frames: int, num_codebooks: int) -> int:
    """P, the number of columns that a clip of ``num_frames`` frames takes in the sequence."""
    return num_frames + num_codebooks + 1


def apply_delay(codes_FK: Tensor, *, begin_id: int, end_id: int) -> Tensor:
    """Codes (F, K) as columns (P, K), each codebook led by begin of stream and closed by end of stream."""
    frame_PK = _frame_of_cell(codes_FK)
    columns_PK = codes_FK.gather(0, frame_PK.clamp(0, len(codes_FK) - 1))
    columns_PK[frame_PK < 0] = begin_id
    columns_PK[frame_PK >= len(codes_FK)] = end_id
    return columns_PK


def supervised_targets(codes_FK: Tensor, *, end_id: int) -> Tensor:
    """What the loss asks of each cell of the columns (P, K): its code, end of stream exactly once a codebook,
    and ``IGNORED`` for the begin and fill cells, which nobody predicts."""
    frame_PK = _frame_of_cell(codes_FK)
    targets_PK = codes_FK.gather(0, frame_PK.clamp(0, len(codes_FK) - 1))
    targets_PK[frame_PK < 0] = IGNORED
    targets_PK[frame_PK == len(codes_FK)] = end_id
    targets_PK[frame_PK > len(codes_FK)] = IGNORED
    return targets_PK


def revert_delay(columns_PK: Tensor, *, codebook_size: int) -> Tensor:
    """Columns (P, K), led by the all-begin column, back to codes (F, K).

    The clip ends before the first frame that is not made of codes alone, which for a whole clip is its end of stream.
    A clip that was cut off keeps the frames that are complete. ``codebook_size`` counts real codes: stream tokens lie
    above it.
    """
    P, K = columns_PK.shape
    num_whole_frames = max(P - K, 0)
    frames_FK = torch.stack([columns_PK[1 + k : 1 + k + num_whole_frames, k] for k in range(K)], dim=1)
    is_code_F = (frames_FK < codebook_size).all(dim=1)
    return frames_FK[: int(is_code_F.long().cumprod(0).sum())]


def _frame_of_cell(codes_FK: Tensor) -> Tensor:
    """The frame (P, K) whose code stands in each cell; below 0 before the clip, F and above after it."""
    F, K = codes_FK.shape
    if F == 0:
        raise ValueError("a clip without frames has no delay pattern: prepare should have refused it")
    column_P = torch.arange(count_columns(F, K), device=codes_FK.device)
    codebook_K = torch.arange(K, device=codes_FK.device)
    return column_P[:, None] - codebook_K[None, :] - 1
