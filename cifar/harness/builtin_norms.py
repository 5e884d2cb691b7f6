"""torch.nn's norms with fastnorm's call, norm(x, residual); each step is a separate operator.

Subclasses rather than wrappers, so that a checkpoint has the same names with either.
"""

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


class Unfused(nn.Module):
    """act(norm(x) + residual) as three operators, as in a model without fastnorm."""

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


class SyncBatchNorm(Unfused, nn.SyncBatchNorm):
    """torch.nn.SyncBatchNorm, add, relu."""


class InstanceNorm2d(Unfused, nn.InstanceNorm2d):
    """torch.nn.InstanceNorm2d, add, relu."""


class GroupNorm(Unfused, nn.GroupNorm):
    """torch.nn.GroupNorm, add, relu."""


class Identity(Unfused, nn.Identity):
    """No norm; add, relu."""


def convert_sync_batchnorm(model: Model) -> Model:
    """`model` with each BatchNorm2d replaced; torch's own converter would drop the relu."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, BatchNorm2d):
                norm = SyncBatchNorm(child.num_features, activation=child.activation)
                norm.load_state_dict(child.state_dict())
                setattr(module, name, norm.to(child.weight.device))
    return model
