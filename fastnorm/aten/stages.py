"""`fastnorm.kernels.stages` from ATen's operators: moments and apply for merges made elsewhere.

Tables are float64 where a mean is so far from 0 that its float32 rounding would show; x is then
computed with in float64 throughout.
"""

import torch
from torch import Tensor

from . import operators
from .activations import activate, activate_backward, relu_mask
from .operators import accumulated, is_far, laid_out_as, widened

__all__ = ["apply", "apply_backward", "gradient_moments", "moments", "relu_mask", "table"]


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each (n, c) of an x with elements: two of (N, C), float64."""
    x = widened(x.contiguous())
    mean, var = operators.moments(x)
    if is_far(mean, var):
        mean, var = operators.moments(x.double())
    return mean.double(), var.double()


def table(center: Tensor, scale: Tensor, shift: Tensor, x: Tensor) -> Tensor:
    """The coefficients, each (N, C), stacked as center, scale, shift."""
    found = torch.stack((center, scale, shift))
    narrow = found.to(accumulated(x))
    return found if is_far(narrow[0], narrow[1].pow(-2)) else narrow


def apply(
    x: Tensor, residual: Tensor | None, table: Tensor, activation: str | None, differentiable: bool
) -> tuple[Tensor, Tensor | None]:
    """y, and what backward needs beside x and the table: y itself for ReLU, else the residual."""
    y, _ = activate(_apply(x, table), residual, activation, ())
    y = y.data  # no view, which autograd would forbid to write to: see norms.norm
    return y, y if activation == "relu" else residual


def gradient_moments(
    dy: Tensor, x: Tensor, side: Tensor | None, table: Tensor, activation: str | None
) -> tuple[Tensor, Tensor]:
    """Sums of g = dy * act' and of g (x - center) over each (n, c): two of (N, C)."""
    g = _gradient(dy, x, side, table, activation).contiguous()
    x = _wide(x, table)
    return operators.gradient_moments(g.to(x.dtype), x, table[0])


def apply_backward(
    dy: Tensor,
    x: Tensor,
    side: Tensor | None,
    table: Tensor,
    slopes: Tensor,
    activation: str | None,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """dx = scale g + slope (x - center) + level and dresidual = g, each where `needs` says so."""
    dresidual = _gradient(dy, x, side, table, activation)
    dx = None
    if needs[0]:
        wide = _wide(x, table)
        g = dresidual.contiguous().to(wide.dtype)
        slope, level = slopes.to(table.dtype)
        dx = operators.apply_backward(g, wide, table[0], table[1], slope, level)
        dx = laid_out_as(x, dx.to(x.dtype))
    return dx, dresidual if needs[1] else None


def _wide(x: Tensor, table: Tensor) -> Tensor:
    """x as it is computed with beside this table: contiguous, ATen has no other fast kernels."""
    x = widened(x.contiguous())
    return x.double() if table.dtype == torch.float64 else x


def _apply(x: Tensor, table: Tensor) -> Tensor:
    """(x - center) * scale + shift in x's dtype and layout."""
    center, scale, shift = table
    return laid_out_as(x, operators.apply(_wide(x, table), center, scale, shift).to(x.dtype))


def _gradient(
    dy: Tensor, x: Tensor, side: Tensor | None, table: Tensor, activation: str | None
) -> Tensor:
    """g = dy * act'(z), z recomputed for the smooth activations."""
    if activation is None or activation == "relu":
        return activate_backward(dy, side, (), activation)
    z = _apply(x, table)
    z = z if side is None else z.add_(side)
    return activate_backward(dy, None, (z,), activation)
