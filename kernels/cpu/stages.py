"""The stages one by one, for merges that are made outside of the engine.

What is given to the second stage, forward and backward, is a table (3, N, C) of centers, scales
and shifts, in float64: y = act((x - center) * scale + shift + residual).
"""

import torch

from ..masks import mask_bytes, side_input
from ..tensors import dense, laid_out_as
from .calls import ACTIVATIONS, NORMS, pack_job, pointer, run
from .channels import runs, seen
from .norms import relu_mask

__all__ = ["apply", "apply_backward", "gradient_moments", "moments", "relu_mask", "table"]


def moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of each (n, c) of an x with elements: two of (N, C), float64."""
    x, N, C, S, last = seen(x)
    found = x.new_empty((2, *x.shape[:2]), dtype=torch.float64)
    job = pack_job(
        x.data_ptr(), *[0] * 15, found.data_ptr(), N, C, S, last, NORMS["moments"], 1, True, 0, 0,
        0, torch.get_num_threads(), 0.0, 0.0,
    )  # fmt: skip
    run("norm", x, job)
    mean, var = found
    return mean, var


def table(
    center: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    """The coefficients, each (N, C), as the engine takes them."""
    return torch.stack((center, scale, shift)).double()


def apply(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    table: torch.Tensor,
    activation: str | None,
    differentiable: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """y, and what backward needs beside x and the table: ReLU's mask, the residual or nothing."""
    x, N, C, S, last = seen(x)
    residual = laid_out_as(x, residual)
    side = side_input(activation, residual is not None)
    masked = differentiable and side == "mask"
    bits = x.new_empty(mask_bytes(*runs(N, C, S, last)), dtype=torch.uint8) if masked else None
    y = torch.empty_like(x)
    job = pack_job(
        x.data_ptr(), 0, pointer(residual), pointer(bits), *[0] * 5, table.data_ptr(),
        y.data_ptr(), *[0] * 6, N, C, S, last, NORMS["given"], 1, True, ACTIVATIONS[activation],
        0, 0, torch.get_num_threads(), 0.0, 0.0,
    )  # fmt: skip
    run("norm", x, job)
    return y, residual if side == "residual" else bits


def gradient_moments(
    dy: torch.Tensor,
    x: torch.Tensor,
    side: torch.Tensor | None,
    table: torch.Tensor,
    activation: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of g = dy * act' and of g (x - center) over each (n, c): two of (N, C), float64."""
    x = dense(x)
    found = x.new_empty((2, *x.shape[:2]), dtype=torch.float64)
    _backward(dy, x, side, table, activation, sums=found)
    sum_g, sum_gx = found
    return sum_g, sum_gx


def apply_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    side: torch.Tensor | None,
    table: torch.Tensor,
    slopes: torch.Tensor,
    activation: str | None,
    needs: tuple[bool, bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """dx = scale g + slope (x - center) + level and dresidual = g, each where `needs` says so.

    `slopes` (2, N, C) are slope and level.
    """
    x = dense(x)
    dx = torch.empty_like(x) if needs[0] else None
    fused = needs[1] and activation is not None
    dresidual = torch.empty_like(x) if fused else None
    if dx is not None or fused:
        _backward(dy, x, side, table, activation, dx, dresidual, slopes.double().contiguous())
    return dx, dresidual if fused else laid_out_as(x, dy) if needs[1] else None


def _backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    side: torch.Tensor | None,
    table: torch.Tensor,
    activation: str | None,
    dx: torch.Tensor | None = None,
    dresidual: torch.Tensor | None = None,
    slopes: torch.Tensor | None = None,
    sums: torch.Tensor | None = None,
) -> None:
    x, N, C, S, last = seen(x)
    masked = side is not None and activation == "relu"
    dy = laid_out_as(x, dy)
    residual, bits = (None, side) if masked else (laid_out_as(x, side), None)
    job = pack_job(
        x.data_ptr(), dy.data_ptr(), pointer(residual), pointer(bits), *[0] * 5, table.data_ptr(),
        pointer(dx), pointer(dresidual), 0, 0, 0, pointer(slopes), pointer(sums), N, C, S, last,
        NORMS["given"], 1, True, ACTIVATIONS[activation], 0, 0, torch.get_num_threads(), 0.0, 0.0,
    )  # fmt: skip
    run("norm_backward", x, job)
