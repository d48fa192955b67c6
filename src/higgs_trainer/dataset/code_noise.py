"""Replace a share of the codes that the model reads by random ones, as an augmentation for small datasets.

In generation a model reads its own output, mistakes included; in training it reads only correct codes. With a few wrong
codes among its inputs, and correct targets, it learns to recover from a mistake.
"""

from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from higgs_trainer.dataset.examples import Example


class Examples(Protocol):
    """Encoded examples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


class NoisyExamples(Dataset[Example]):
    """The training set with code noise, drawn again in each epoch. It is not used for evaluation.

    Each example draws a rate between 0 and ``code_noise``, and that share of its codes becomes random; stream tokens
    stay. The draw depends on seed, epoch and index only, so it is the same in a resumed run, with another number of
    workers and with another packing.
    """

    def __init__(self, examples: Examples, *, code_noise: float, num_codes: int, seed: int) -> None:
        self.examples = examples
        self.code_noise = code_noise
        self.num_codes = num_codes
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draw the noise of this epoch, counted from 0. accelerate's data loader calls this."""
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
