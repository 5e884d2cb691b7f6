"""A norm of your own in ten lines: ghost batch norm, with statistics of parts of the batch.

Source: arXiv 1705.08741. `merge` turns the moments of each (n, c) into an affine map.
fastnorm does the rest: the passes over the tensor, forward and backward, activation and residual.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

import fastnorm


class GhostBatchNorm(fastnorm.MomentNorm):
    def __init__(self, channels: int, part: int, activation: str | None = None) -> None:
        super().__init__(activation=activation)
        self.part = part  # images that share statistics
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def merge(self, mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        mean, var = (t.unflatten(0, (-1, self.part)) for t in (mean, var))
        merged = fastnorm.merge_moments(mean, var, 1)
        mean, var = (t.expand(-1, self.part, -1).flatten(0, 1) for t in merged)
        return self.weight * (var + 1e-5).rsqrt(), mean, self.bias


def definition(norm: GhostBatchNorm, x: Tensor, residual: Tensor) -> Tensor:
    """torch's batch norm of each part by itself."""
    parts = [batch_norm(part, None, None, norm.weight, norm.bias, training=True)
             for part in x.split(norm.part)]  # fmt: skip
    return (torch.cat(parts) + residual).relu()


def main() -> None:
    torch.manual_seed(0)
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    norm = GhostBatchNorm(4, part=3, activation="relu")
    x = torch.randn(12, 4, 8, 8, requires_grad=True)
    residual = torch.randn_like(x)
    y, expected = norm(x, residual=residual), definition(norm, x, residual)
    leaves = [x, norm.weight, norm.bias]
    found, right = (torch.autograd.grad(t.square().sum(), leaves) for t in (y, expected))
    error = max(
        ((ours - theirs).abs().max() / theirs.abs().max()).item()
        for ours, theirs in zip((y, *found), (expected, *right), strict=True)
    )
    print(f"largest relative difference from torch, outputs and gradients: {error:.1e}")
    assert error < 1e-5


if __name__ == "__main__":
    main()
