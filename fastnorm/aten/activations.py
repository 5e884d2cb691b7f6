"""What follows a norm in the same call: the residual and the activation, forward and backward."""

import torch.nn.functional as F
from torch import Tensor

from .operators import aten

Stats = tuple[Tensor, ...]


def side_input(activation: str | None, has_residual: bool) -> str | None:
    """What backward needs beside x: ReLU's mask.

    The smooth activations keep z among the stats and the residual for the second derivative alone.
    """
    if activation == "relu":
        return "mask"
    return "residual" if activation is not None and has_residual else None


def relu_mask(side: Tensor, x: Tensor, norm: str, groups: int) -> Tensor:
    """Where ReLU let through what became the output `side`, NaN included."""
    return ~(side <= 0)


def activate(
    z: Tensor, residual: Tensor | None, activation: str | None, stats: Stats
) -> tuple[Tensor, Stats]:
    """act(z + residual), in z's memory where that is possible; the smooth ones add z to stats."""
    if residual is not None:
        z = z.add_(residual)
    if activation is None:
        return z, stats
    if activation == "relu":
        return z.relu_(), stats
    return (F.silu(z) if activation == "silu" else F.gelu(z)), (*stats, z)


def activate_backward(
    dy: Tensor, output: Tensor | None, stats: Stats, activation: str | None
) -> Tensor:
    """dy * act'(z) from ReLU's output or the z that the smooth activations left in stats."""
    if activation is None:
        return dy
    if activation == "relu":
        return aten.threshold_backward(dy, output, 0)
    backward = aten.silu_backward if activation == "silu" else aten.gelu_backward
    return backward(dy, stats[-1])
