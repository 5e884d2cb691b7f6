"""The autograd Functions on both sides of a merge in plain PyTorch.

    Moments     mean and variance of each (n, c) of x, in one pass
    (merge)     whatever autograd can follow, on tensors of (N, C)
    Apply       y = act((x - center) * scale + shift + residual)

The two Functions share one backward pass over x. Apply's backward adds up the sums for the merge's
gradient, and keeps dy for Moments' backward. That runs last, knows the gradients of mean and
variance, and writes dx in one go. An empty tensor, the link, makes sure that it runs.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .activations import activate, masked
from .autograd import unreadable
from .contract import Stages, side_input
from .tensors import broadcast, positions


@dataclass
class Call:
    """State that the two Functions of one call share; `pending` is dy, from Apply to Moments."""

    stages: Stages
    activation: str | None
    pending: tuple[Tensor, Tensor | None, Tensor] | None = None


class Moments(torch.autograd.Function):
    """(mean, var, link) of x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, call: Call
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, var = call.stages.moments(x)
        ctx.save_for_backward(x, mean)
        ctx.call = call
        ctx.set_materialize_grads(False)
        return mean, var, x.new_empty(0)

    @staticmethod
    def backward(
        ctx: Any, dmean: Tensor | None, dvar: Tensor | None, _dlink: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, mean = ctx.saved_tensors
        zero = torch.zeros_like(mean)
        level = (zero if dmean is None else dmean) / positions(x)
        slope = (zero if dvar is None else dvar) * (2 / positions(x))
        pending, ctx.call.pending = ctx.call.pending, None
        if pending is None:
            if not ctx.needs_input_grad[0]:
                return None, None, None
            deviation = x.to(mean.dtype) - broadcast(mean, x)
            dx = broadcast(slope, x) * deviation + broadcast(level, x)
            return dx.to(x.dtype), None, None
        dy, side, table = pending
        slopes = torch.stack((slope, level + slope * (table[0].double() - mean)))
        needs = ctx.needs_input_grad[:2]
        dx, dresidual = ctx.call.stages.apply_backward(
            dy, x, side, table, slopes, ctx.call.activation, needs
        )
        return dx, dresidual, None


class Apply(torch.autograd.Function):
    """act((x - center) * scale + shift + residual); coefficients are (N, C), center a constant."""

    @staticmethod
    def forward(
        ctx: Any,
        link: Tensor,
        x: Tensor,
        residual: Tensor | None,
        center: Tensor,
        scale: Tensor,
        shift: Tensor,
        call: Call,
    ) -> Tensor:
        table = call.stages.table(center, scale, shift, x)
        y, side = call.stages.apply(x, residual, table, call.activation, any(ctx.needs_input_grad))
        kept = side_input(call.activation, residual is not None) == "residual"
        ctx.save_for_backward(x, residual if kept else None, side, table, scale, shift)
        ctx.call = call
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, residual, side, table, scale, shift = ctx.saved_tensors
        call, stages = ctx.call, ctx.call.stages
        if torch.is_grad_enabled() or unreadable(dy) or torch.compiler.is_compiling():
            dx, g, *sums = _plain_gradients(
                dy, x, residual, side, table[0].double(), scale, shift, call
            )
            return x.new_empty(0), dx, g if ctx.needs_input_grad[2] else None, None, *sums, None
        dscale = dshift = None
        if ctx.needs_input_grad[4] or ctx.needs_input_grad[5]:
            dshift, dscale = stages.gradient_moments(dy, x, side, table, call.activation)
            dshift, dscale = dshift.to(shift.dtype), dscale.to(scale.dtype)
        if ctx.needs_input_grad[0]:
            call.pending = (dy, side, table)
        return x.new_empty(0), None, None, None, dscale, dshift, None


def _plain_gradients(
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    side: Tensor | None,
    center: Tensor,
    scale: Tensor,
    shift: Tensor,
    call: Call,
) -> tuple[Tensor, ...]:
    """The gradients of x, residual, scale and shift, as differentiable functions of all inputs."""
    deviation = x.to(center.dtype) - broadcast(center, x)
    g = dy.to(center.dtype)
    if side is not None and residual is None:
        g = masked(g, call.stages.relu_mask(side, x), call.activation)
    elif call.activation is not None:
        z = deviation * broadcast(scale, x) + broadcast(shift, x)
        z = z if residual is None else z + residual
        g = torch.func.vjp(lambda z: activate(z, call.activation), z)[1](g)[0]
    sum_g, sum_gx = summed(g), summed(g * deviation)
    dx, dresidual = (broadcast(scale, x) * g).to(x.dtype), g.to(x.dtype)
    return dx, dresidual, sum_gx, sum_g


def summed(x: Tensor) -> Tensor:
    """The sum over the positions of x (N, C, ...): (N, C)."""
    return x.sum(tuple(range(2, x.dim()))) if x.dim() > 2 else x
