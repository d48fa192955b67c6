"""Muon for the layers' matrices, AdamW for the rest, as one optimizer that the Trainer can schedule and save.

On the small models of the demo, trained from nothing, Muon needs far fewer steps than AdamW. For adapters on a large
checkpoint AdamW (``optim: adamw_torch``) is the usual choice.

Muon is Keller Jordan's (https://kellerjordan.github.io/posts/muon). torch's own computes in bfloat16, which most CPUs
only emulate, one matrix at a time: that took two thirds of a step of the demo. This one keeps the gradient's precision
and turns all matrices of one shape at once.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

ADAMW_OVER_MUON = 0.2
"""AdamW's learning rate as a share of Muon's: the two have different natural step sizes."""

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalize(matrices_GRC: Tensor) -> Tensor:
    """G matrices (G, R, C) with their singular values brought near 1, by a quintic Newton-Schulz iteration."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices_GRC.shape[-2] > matrices_GRC.shape[-1]
    X = matrices_GRC.mT if tall else matrices_GRC
    X = X / X.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), X, beta=a)
    return X.mT if tall else X


class Muon(Optimizer):
    """Momentum whose update is orthogonalized; for two-dimensional weights only."""

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Nesterov momentum, orthogonalized, scaled by the root of rows over columns where that is above 1."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for (rows, columns), parameters in by_shape.items():
                updates = orthogonalize(
                    torch.stack([self._momentum(p, group["momentum"]) for p in parameters])
                )
                step_size = group["lr"] * max(1.0, rows / columns) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-step_size)
        return loss

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None  # `step` leaves out parameters without one
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["momentum"], momentum)


class MuonWithAdamW(Optimizer):
    """Two optimizers behind one set of parameter groups; the learning-rate schedule moves both."""

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
        """One step of both parts."""
        loss = closure() if closure is not None else None
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Both parts' states, in order."""
        return {"parts": [part.state_dict() for part in self.parts], "param_groups": [], "state": {}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both parts; the schedule goes on moving the groups that they now hold."""
        for part, saved in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(saved)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def build_muon(model: nn.Module, *, lr: float, weight_decay: float) -> MuonWithAdamW:
    """Muon on the two-dimensional weights inside the decoder layers, AdamW on embeddings, heads and norms."""
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices = {name for name, parameter in trainable if parameter.ndim == 2 and ".layers." in f".{name}"}
    return MuonWithAdamW(
        [parameter for name, parameter in trainable if name in matrices],
        [parameter for name, parameter in trainable if name not in matrices],
        lr=lr,
        weight_decay=weight_decay,
    )
