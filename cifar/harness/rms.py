"""RMS norm for images, as a user's merge: fastnorm has RMS norm only for rows."""

import torch
from torch import Tensor, nn

import fastnorm
from fastnorm import Coefficients


class RMSNorm2d(fastnorm.MomentNorm):
    """y = weight x / sqrt(mean of squares + eps) over C, H, W (arXiv 1910.07467), like a CNN's
    layer norm; weight has one value for each channel, and there is no bias."""

    def __init__(self, channels: int, eps: float = 1e-5, *, activation: str | None = None) -> None:
        super().__init__(activation=activation)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))

    def merge(self, mean: Tensor, var: Tensor, count: int) -> Coefficients:
        """mean, var: (N, C)."""
        mean_square = (mean.square() + var).mean(1, keepdim=True)
        return self.weight * (mean_square + self.eps).rsqrt(), 0.0, 0.0
