"""torch.nn's norms with fastnorm's call, norm(x, residual), each step an operator of its own.

Subclasses rather than wrappers, so that a checkpoint has the same names with either.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Unfused(nn.Module):
    """act(norm(x) + residual) as three operators: what a model without fastnorm runs."""

    def __init__(self, *args: Any, activation: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = activation

    def forward(self, input: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """input, residual and the result: (N, C, H, W)."""
        y = super().forward(input)
        if residual is not None:
            y = y + residual
        return F.relu(y) if self.activation == "relu" else y


class BatchNorm2d(Unfused, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d, add, relu."""


class InstanceNorm2d(Unfused, nn.InstanceNorm2d):
    """torch.nn.InstanceNorm2d, add, relu."""


class GroupNorm(Unfused, nn.GroupNorm):
    """torch.nn.GroupNorm, add, relu."""


class Identity(Unfused, nn.Identity):
    """No norm; add, relu."""
