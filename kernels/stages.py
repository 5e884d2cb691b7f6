"""The stages one by one, for merges that are made outside of the kernels.

What is given to the second stage, forward and backward, is a table (3, N, C) of centers, scales
and shifts: y = act((x - center) * scale + shift + residual).
"""

import torch

from . import tiers
from .channel_types import Backward, Forward
from .launch import counters
from .masks import side_input
from .norms import relu_mask
from .plans import Norm, Plan, backward_plan, forward_plan
from .tensors import accumulation, accumulators, dense, dtypes_of, laid_out_as

__all__ = ["apply", "apply_backward", "gradient_moments", "moments", "relu_mask", "table"]

STREAMING: tiers.State = (False, "streaming")


def moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of each (n, c) of an x with elements: two of (N, C), float64."""
    x = dense(x)
    spec = Norm("instance", 1, True, None)
    t = Forward(x)
    key = (x.shape, x.is_contiguous(), dtypes_of(t), False)
    plan = forward_plan(*key, spec, False, STREAMING)
    stats, table = accumulators(x, plan.stats), accumulators(x, plan.table)
    assert plan.first is not None and stats is not None
    tickets = counters(x, "tickets", plan.tickets)
    plan.first(t._replace(stats=stats, table=table, tickets=tickets), (0.0, 0.0))
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
    t = Forward(x, laid_out_as(x, residual), stats=table)
    side = side_input(activation, residual is not None)
    spec = Norm("given", 1, True, activation)
    masked = differentiable and side == "mask"
    key = (x.shape, x.is_contiguous(), dtypes_of(t), masked)
    plan = forward_plan(*key, spec, False, STREAMING)
    bits = x.new_empty(plan.bits, dtype=torch.uint8) if masked else None
    t = t._replace(y=torch.empty_like(x), bits=bits)
    assert plan.second is not None
    plan.second(t, (0.0,))
    return t.y, t.residual if side == "residual" else bits


def gradient_moments(
    dy: torch.Tensor,
    x: torch.Tensor,
    side: torch.Tensor | None,
    table: torch.Tensor,
    activation: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of g = dy * act' and of g (x - center) over each (n, c): two of (N, C)."""
    t = _inputs(dy, x, side, table, activation)
    x = t.x
    plan = _backward_plan(t, activation, (True, False, False, False, False))
    sums, scratch = accumulators(x, plan.sums), accumulators(x, plan.table)
    assert plan.first is not None and sums is not None
    tickets = counters(x, "tickets", plan.tickets)
    plan.first(t._replace(sums=sums, table=scratch, tickets=tickets))
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
    """dx = scale g + q (x - center) + r and dresidual = g, each where `needs` says so.

    `slopes` (2, N, C) are q and r.
    """
    t = _inputs(dy, x, side, table, activation)
    plan = _backward_plan(t, activation, (*needs, False, False, False))
    t = t._replace(
        sums=slopes.to(accumulation(x)) if needs[0] else None,
        dx=torch.empty_like(t.x) if needs[0] else None,
        dresidual=torch.empty_like(t.x) if plan.dresidual else None,
    )
    if plan.second is not None:
        plan.second(t)
    return t.dx, t.dy if needs[1] and activation is None else t.dresidual


def _inputs(
    dy: torch.Tensor,
    x: torch.Tensor,
    side: torch.Tensor | None,
    table: torch.Tensor,
    activation: str | None,
) -> Backward:
    x = dense(x)
    masked = side is not None and activation == "relu"
    return Backward(
        x,
        laid_out_as(x, dy),
        residual=None if masked else laid_out_as(x, side),
        bits=side if masked else None,
        stats=table,
    )


def _backward_plan(
    t: Backward, activation: str | None, needs: tuple[bool, bool, bool, bool, bool]
) -> Plan:
    spec = Norm("given", 1, True, activation)
    return backward_plan(t.x.shape, t.x.is_contiguous(), dtypes_of(t), spec, needs, STREAMING)
