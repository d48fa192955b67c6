"""Muon for the matrices of the decoder layers and AdamW for the rest, as one optimizer for Trainer.

The demo's small model, trained from random weights, needs far fewer steps with Muon than with AdamW. For adapters on a
large checkpoint, use AdamW (``training.optim``).

Muon is by Keller Jordan (https://kellerjordan.github.io/posts/muon). ``torch.optim.Muon`` iterates in bfloat16, one
matrix at a time; most CPUs emulate bfloat16, and it took two thirds of a step of the demo. This one keeps the dtype of
the gradient and orthogonalizes all matrices of one shape together (docs/decisions/muon.md).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import TrainingArguments

ADAMW_OVER_MUON = 0.2
"""AdamW's learning rate as a share of Muon's: the natural step sizes of the two differ."""

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalize(matrices_GRC: Tensor) -> Tensor:
    """Bring the singular values of G matrices (G, R, C) close to 1 by a quintic Newton-Schulz iteration."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices_GRC.shape[-2] > matrices_GRC.shape[-1]
    X = matrices_GRC.mT if tall else matrices_GRC
    X = X / X.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), X, beta=a)
    return X.mT if tall else X


class Muon(Optimizer):
    """Momentum with an orthogonalized update, for two-dimensional weights only."""

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        *,
        lr: float,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Apply Nesterov momentum, orthogonalized and scaled by the root of rows over columns where that exceeds 1."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for (rows, columns), parameters in by_shape.items():
                updates = orthogonalize(torch.stack([self._compute_momentum(p) for p in parameters]))
                step_size = group["lr"] * max(1.0, rows / columns) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-step_size)
        return loss

    def _compute_momentum(self, parameter: Tensor) -> Tensor:
        gradient, state = parameter.grad, self.state[parameter]
        # `step` skips parameters without a gradient.
        assert gradient is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(state["momentum"], MOMENTUM)


class MuonWithAdamW(Optimizer):
    """Two optimizers with one list of parameter groups, so that the learning-rate schedule moves both."""

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        *,
        lr: float,
        weight_decay: float,
    ) -> None:
        self.parts: list[Optimizer] = [
            Muon(matrices, lr=lr, weight_decay=weight_decay),
            AdamW(others, lr=lr * ADAMW_OVER_MUON, weight_decay=0.0, betas=(0.9, 0.95)),
        ]
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step both parts."""
        loss = closure() if closure is not None else None
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both parts, in order."""
        return {"parts": [part.state_dict() for part in self.parts], "param_groups": [], "state": {}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both parts, and list the groups that they hold now, so that the schedule moves those."""
        for part, saved in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(saved)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def build_muon(model: nn.Module, arguments: TrainingArguments) -> MuonWithAdamW:
    """Build Muon for the two-dimensional weights inside the decoder layers, AdamW for embeddings, heads and norms.

    The learning rate and the weight decay are those of ``arguments``.
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices = {name for name, parameter in trainable if parameter.ndim == 2 and ".layers." in f".{name}"}
    return MuonWithAdamW(
        [parameter for name, parameter in trainable if name in matrices],
        [parameter for name, parameter in trainable if name not in matrices],
        lr=arguments.learning_rate,
        weight_decay=arguments.weight_decay,
    )
