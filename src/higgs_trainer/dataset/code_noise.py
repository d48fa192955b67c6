"""Slips of the tongue, for training on little data: a share of the codes that the model reads is replaced by others.

In generation a model reads what it said itself, slips included; in training, only what is right. With a few wrong codes
among its inputs, and true targets all the same, it learns to go on after a slip.
"""

from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from higgs_trainer.dataset.examples import Example


class Examples(Protocol):
    """Encoded examples, by position."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


class NoisyExamples(Dataset[Example]):
    """The training set, disturbed anew in each epoch; held-out examples never pass here.

    Each example draws a rate between 0 and ``code_noise``, and that share of its codes (stream tokens are left alone)
    becomes random ones. The draw depends on seed, epoch and index alone: not on who asks, in which order or how often,
    so that a resumed run, another number of workers or another packing disturbs alike.
    """

    def __init__(self, examples: Examples, *, code_noise: float, num_codes: int, seed: int) -> None:
        self.examples = examples
        self.code_noise = code_noise
        self.num_codes = num_codes
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Disturb as in this epoch, counted from 0; accelerate's data loader calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        example = self.examples[index]
        columns_PK = example.columns_PK
        generator = np.random.default_rng((self.seed, self.epoch, index))
        rate = self.code_noise * generator.random()
        hit_PK = torch.from_numpy(generator.random(columns_PK.shape) < rate) & (columns_PK < self.num_codes)
        random_PK = torch.from_numpy(generator.integers(self.num_codes, size=columns_PK.shape))
        return replace(example, columns_PK=torch.where(hit_PK, random_PK, columns_PK))
