"""The delay pattern: codebook k lags codebook k - 1 by one column. Pure functions on tensors.

A clip of F frames and K codebooks becomes P = F + K + 1 columns. In column p, codebook k holds

    begin of stream   for p <= k
    code p - k - 1    for k < p <= F + k
    end of stream     for p > F + k

The model writes one column at a time, so it knows the coarser codebooks of a frame when it writes a finer one. The
layout equals that of transformers' ``HiggsAudioV2Processor`` and of Boson's collator in every cell.
"""

import torch
from torch import Tensor

from higgs_trainer.tensors import IGNORED


def count_columns(num_frames: int, num_codebooks: int) -> int:
    """Return P, the number of columns of a clip with ``num_frames`` frames."""
    return num_frames + num_codebooks + 1


def apply_delay(codes_FK: Tensor, *, begin_id: int, end_id: int) -> Tensor:
    """Delay codes (F, K) to columns (P, K), with begin of stream before and end of stream after each codebook."""
    frame_PK = _find_frame_of_cell(codes_FK)
    columns_PK = codes_FK.gather(0, frame_PK.clamp(0, len(codes_FK) - 1))
    columns_PK[frame_PK < 0] = begin_id
    columns_PK[frame_PK >= len(codes_FK)] = end_id
    return columns_PK


def build_targets(codes_FK: Tensor, *, end_id: int) -> Tensor:
    """Build the targets (P, K) of the columns of a clip.

    A target is the code of its cell, and end of stream once for each codebook. The cells before a codebook begins and
    the cells that fill it after its end of stream are ``IGNORED``.
    """
    frame_PK = _find_frame_of_cell(codes_FK)
    targets_PK = codes_FK.gather(0, frame_PK.clamp(0, len(codes_FK) - 1))
    targets_PK[frame_PK < 0] = IGNORED
    targets_PK[frame_PK == len(codes_FK)] = end_id
    targets_PK[frame_PK > len(codes_FK)] = IGNORED
    return targets_PK


def revert_delay(columns_PK: Tensor, *, codebook_size: int) -> Tensor:
    """Revert columns (P, K), which begin with a column of begin of stream, to codes (F, K).

    The clip ends before the first frame that holds a stream token; in a complete clip, that is its end of stream. A
    clip that was cut off keeps its complete frames.

    Args:
        codebook_size: number of codes without stream tokens, whose ids are at least this.
    """
    P, K = columns_PK.shape
    num_whole_frames = max(P - K, 0)
    frames_FK = torch.stack([columns_PK[1 + k : 1 + k + num_whole_frames, k] for k in range(K)], dim=1)
    is_code_F = (frames_FK < codebook_size).all(dim=1)
    return frames_FK[: int(is_code_F.long().cumprod(0).sum())]


def _find_frame_of_cell(codes_FK: Tensor) -> Tensor:
    """Return the frame (P, K) whose code each cell holds: negative before the clip, F or more after it."""
    F, K = codes_FK.shape
    if F == 0:
        raise ValueError("a clip without frames has no delay pattern. Prepare the data again")
    column_P = torch.arange(count_columns(F, K), device=codes_FK.device)
    codebook_K = torch.arange(K, device=codes_FK.device)
    return column_P[:, None] - codebook_K[None, :] - 1
