"""The stages one by one, for merges that are made outside of the kernels.

What is given to the second stage, forward and backward, is a table (3, N, C) of centers, scales
and shifts: y = act((x - center) * scale + shift + residual).
"""

import torch

from . import tiers
from .launch import counters
from .masks import side_input
from .norms import relu_mask
from .plans import Norm, Plan, backward_plan, forward_plan
from .tensors import Tensors, accumulation, accumulators, dense, dtypes_of, laid_out_as

__all__ = ["apply", "apply_backward", "gradient_moments", "moments", "relu_mask", "table"]

STREAMING: tiers.State = (False, "streaming")


def moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of each (n, c) of an x with elements: two of (N, C), float64."""
    x = dense(x)
    spec = Norm("instance", 1, True, None)
    plan = forward_plan(x.shape, x.is_contiguous(), (x.dtype, None), spec, False, STREAMING)
    stats, table = accumulators(x, plan.stats), accumulators(x, plan.table)
    assert plan.first is not None and stats is not None
    plan.first((x, None, None, stats, table, counters(x, "tickets", plan.tickets)), (0.0, 0.0))
    center, offset, rstd = stats.view(3, *x.shape[:2]).double()
    return center + offset, rstd.pow(-2)


def table(
    center: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    """The coefficients, each (N, C), as the kernels for x take them."""
    return torch.stack((center, scale, shift)).to(accumulation(x))


def apply(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    table: torch.Tensor,
    activation: str | None,
    differentiable: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """y, and what backward needs beside x and the table: ReLU's mask, the residual or nothing."""
    x = dense(x)
    residual = laid_out_as(x, residual)
    side = side_input(activation, residual is not None)
    spec = Norm("given", 1, True, activation)
    masked = differentiable and side == "mask"
    dtypes = (*dtypes_of((x, residual)), torch.uint8 if masked else None)
    plan = forward_plan(x.shape, x.is_contiguous(), dtypes, spec, False, STREAMING)
    y = torch.empty_like(x)
    bits = x.new_empty(plan.bits, dtype=torch.uint8) if masked else None
    assert plan.second is not None
    plan.second((x, residual, None, None, None, None, None, y, bits, table), (0.0,))
    return y, residual if side == "residual" else bits


def gradient_moments(
    dy: torch.Tensor,
    x: torch.Tensor,
    side: torch.Tensor | None,
    table: torch.Tensor,
    activation: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of g = dy * act' and of g (x - center) over each (n, c): two of (N, C)."""
    inputs, x = _inputs(dy, x, side, table, activation)
    plan = _backward_plan(x, inputs, activation, (True, False, False, False, False))
    sums, scratch = accumulators(x, plan.sums), accumulators(x, plan.table)
    assert plan.first is not None and sums is not None
    tickets = counters(x, "tickets", plan.tickets)
    plan.first((*inputs, sums, None, None, None, scratch, tickets))
    sum_g, sum_gx = sums.view(2, *x.shape[:2])
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
    inputs, x = _inputs(dy, x, side, table, activation)
    plan = _backward_plan(x, inputs, activation, (*needs, False, False, False))
    dx = torch.empty_like(x) if needs[0] else None
    dresidual = torch.empty_like(x) if plan.dresidual else None
    if plan.second is not None:
        plan.second((*inputs, slopes.to(accumulation(x)) if needs[0] else None, dx, dresidual))
    return dx, inputs[1] if needs[1] and activation is None else dresidual


def _inputs(
    dy: torch.Tensor,
    x: torch.Tensor,
    side: torch.Tensor | None,
    table: torch.Tensor,
    activation: str | None,
) -> tuple[Tensors, torch.Tensor]:
    """The backward kernels' inputs, and the dense x among them."""
    x = dense(x)
    masked = side is not None and activation == "relu"
    residual = None if masked else laid_out_as(x, side)
    bits = side if masked else None
    return (x, laid_out_as(x, dy), residual, bits, None, None, None, table), x


def _backward_plan(
    x: torch.Tensor,
    inputs: Tensors,
    activation: str | None,
    needs: tuple[bool, bool, bool, bool, bool],
) -> Plan:
    spec = Norm("given", 1, True, activation)
    return backward_plan(x.shape, x.is_contiguous(), dtypes_of(inputs), spec, needs, STREAMING)
