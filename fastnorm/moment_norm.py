"""Norms of your own: a merge in plain PyTorch between the fused moments and the fused apply.

    Moments     mean and variance of each (n, c) of x, in one pass
    (merge)     whatever autograd can follow, on tensors of (N, C)
    Apply       y = act((x - center) * scale + shift + residual)

The two Functions share one backward pass over x: Apply's adds up what the merge's gradient needs
and leaves dy for Moments', which comes last, knows the gradients of mean and variance, and writes
dx at once. An empty tensor, the link, makes sure that it does come.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import aten_given, dispatch, reference
from .aten_stages import accumulated
from .autograd import transformed
from .backend import backend_for, kernels_for
from .checks import check_input

Coefficients = tuple[Tensor | float, Tensor | float, Tensor | float]  # scale, center, shift
Merge = Callable[[Tensor, Tensor, int], Coefficients]


def moment_norm(
    input: Tensor,
    merge: Merge,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """act((x - center) * scale + shift + residual) of input (N, C, ...), by a merge of your own.

    `merge(mean, var, count)` gets the mean and the biased variance of each (n, c), float64 tensors
    of shape (N, C), and the number of positions that they are over; it returns (scale, center,
    shift), each a number or a tensor that broadcasts to (N, C). It is called once a forward and
    autograd runs through it, so parameters, statistics over other sets (`merge_moments`),
    collectives and buffers may be used as in any module. float64 keeps it simple: differences of
    means cost no digits, and the tensors are tiny.

    x is read once for its moments and once more to be normalised: 3 S forward and 5 S backward, S
    the bytes of x (with a residual and an activation 4 S and 6 S). Derivatives of second order run
    through plain PyTorch, forward-mode ones and traced programs from the start.

    Raises RuntimeError for an input of less than 2 dimensions or a residual unlike it,
    NotImplementedError for dtypes without kernels, ValueError for an unknown activation.
    """
    if has_torch_function_variadic(input, residual):
        return handle_torch_function(
            moment_norm, (input, residual), input, merge, activation=activation, residual=residual
        )
    input, residual = dispatch.autocast(input, residual, "moment")
    check_input("moment_norm", input, 2, activation, residual)
    backend = backend_for(input)
    plain = (
        backend == "reference" or dispatch.is_traced(input) or transformed() or input.numel() == 0
    )
    if plain or forward_ad._current_level >= 0:
        return _formula(input, merge, activation, residual)
    call = _Call(kernels_for(input).stages if backend == "triton" else aten_given, activation)
    mean, var, link = Moments.apply(input, residual, call)
    scale, center, shift = _expanded(merge(mean, var, _positions(input)), mean)
    # Relative to the instance's own mean, a constant here: it cancels, and no digits are lost.
    origin = mean.detach()
    shift = shift + scale * (origin - center)
    return Apply.apply(link, input, residual, origin, scale, shift, call)


def merge_moments(mean: Tensor, var: Tensor, dim: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the union of equally large sets along `dim`, kept as size 1.

    mean and var have one shape and any floating dtype, which the results have too. Over dim 0 of
    (N, C) moments: those of each channel over the batch. Source: Chan, Golub and LeVeque (1979).
    """
    merged = mean.mean(dim, keepdim=True)
    return merged, (var + (mean - merged).square()).mean(dim, keepdim=True)


@torch.no_grad()
def update_running(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    var: Tensor,
    n: Tensor,
    share: Tensor | float,
) -> None:
    """Move (C,) running statistics by `share` towards those of n values a channel, `var` biased.

    No values leave no average. n is a tensor: looking at it would wait for the GPU.
    """
    unbiased = var * (n / (n - 1).clamp(min=1))
    for buffer, new in ((running_mean, mean), (running_var, unbiased)):
        new = torch.where(n > 0, new.to(buffer.dtype), buffer)
        buffer.lerp_(new, share.to(buffer.dtype) if isinstance(share, Tensor) else share)


class MomentNorm(nn.Module):
    """A norm of your own: a subclass writes `merge`, see `fastnorm.functional.moment_norm`.

    ::

        class FilterResponseNorm(fastnorm.MomentNorm):  # arXiv 1911.09737, without its threshold
            def __init__(self, channels, eps=1e-6, **kwargs):
                super().__init__(**kwargs)
                self.eps = eps
                self.weight = nn.Parameter(torch.ones(channels))
                self.bias = nn.Parameter(torch.zeros(channels))

            def merge(self, mean, var, count):
                mean_square = mean.square() + var
                return self.weight * (mean_square + self.eps).rsqrt(), 0.0, self.bias
    """

    def __init__(self, *, activation: str | None = None) -> None:
        super().__init__()
        self.activation = activation

    def merge(self, mean: Tensor, var: Tensor, count: int) -> Coefficients:
        """(scale, center, shift) from the moments over `count` positions each.

        mean and the biased var are float64 tensors of shape (N, C); what is returned are numbers or
        tensors that broadcast to that. Raises NotImplementedError where a subclass has no `merge`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method `merge`: see MomentNorm")

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """act((input - center) * scale + shift + residual) of input (N, C, ...)."""
        return moment_norm(input, self.merge, activation=self.activation, residual=residual)

    def extra_repr(self) -> str:
        return "" if self.activation is None else f"activation={self.activation!r}"


@dataclass
class _Call:
    """What the two Functions of one call share; `pending` is Apply's dy on its way to Moments."""

    stages: ModuleType
    activation: str | None
    pending: tuple[Tensor, Tensor | None, Tensor] | None = None


class Moments(torch.autograd.Function):
    """(mean, var, link) of x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, call: _Call
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
        level = (zero if dmean is None else dmean) / _positions(x)
        slope = (zero if dvar is None else dvar) * (2 / _positions(x))
        pending, ctx.call.pending = ctx.call.pending, None
        if pending is None:
            if not ctx.needs_input_grad[0]:
                return None, None, None
            deviation = x.to(mean.dtype) - _column(mean, x)
            dx = _column(slope, x) * deviation + _column(level, x)
            return dx.to(x.dtype), None, None
        dy, side, table = pending
        slopes = torch.stack((slope, level + slope * (table[0].double() - mean)))
        needs = ctx.needs_input_grad[:2]
        dx, dresidual = ctx.call.stages.apply_backward(
            dy, x, side, table, slopes, ctx.call.activation, needs
        )
        return dx, dresidual, None


class Apply(torch.autograd.Function):
    """act((x - center) * scale + shift + residual); coefficients of shape (N, C), center fixed."""

    @staticmethod
    def forward(
        ctx: Any,
        link: Tensor,
        x: Tensor,
        residual: Tensor | None,
        center: Tensor,
        scale: Tensor,
        shift: Tensor,
        call: _Call,
    ) -> Tensor:
        table = call.stages.table(center, scale, shift, x)
        y, side = call.stages.apply(x, residual, table, call.activation, any(ctx.needs_input_grad))
        smooth = call.activation not in (None, "relu")
        ctx.save_for_backward(x, residual if smooth else None, side, table, scale, shift)
        ctx.call = call
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, residual, side, table, scale, shift = ctx.saved_tensors
        call, stages = ctx.call, ctx.call.stages
        if torch.is_grad_enabled():
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
    call: _Call,
) -> tuple[Tensor, ...]:
    """The gradients of x, residual, scale and shift as differentiable functions of all."""
    deviation = x.to(center.dtype) - _column(center, x)
    g = dy.to(center.dtype)
    if call.activation == "relu" and side is not None:
        g = torch.where(call.stages.relu_mask(side, x), g, 0.0)
    elif call.activation is not None:
        z = deviation * _column(scale, x) + _column(shift, x)
        z = z if residual is None else z + residual
        g = torch.func.vjp(lambda z: reference.activate(z, call.activation), z)[1](g)[0]
    dims = tuple(range(2, x.dim()))
    sum_g, sum_gx = (_summed(t, dims) for t in (g, g * deviation))
    dx, dresidual = (_column(scale, x) * g).to(x.dtype), g.to(x.dtype)
    return dx, dresidual, sum_gx, sum_g


def _formula(x: Tensor, merge: Merge, activation: str | None, residual: Tensor | None) -> Tensor:
    """moment_norm in plain PyTorch; in the dtype of statistics, the merge alone in float64."""
    wide, dims = x.to(accumulated(x)), tuple(range(2, x.dim()))
    if x.numel() == 0 or not dims:  # nothing to average, or one value each
        mean = _summed(wide, dims)
        var = torch.zeros_like(mean)
    else:
        var, mean = torch.var_mean(wide, dims, correction=0)
    mean, var = mean.double(), var.double()
    scale, center, shift = _expanded(merge(mean, var, _positions(x)), mean)
    shift = shift + scale * (mean - center)
    origin, scale, shift = (_column(t.to(wide.dtype), x) for t in (mean, scale, shift))
    y = (wide - origin) * scale + shift
    y = y if residual is None else y + residual
    return reference.activate(y, activation).to(x.dtype)


def _expanded(found: Coefficients, mean: Tensor) -> tuple[Tensor, ...]:
    """The merge's coefficients as tensors like mean."""
    return tuple(
        torch.as_tensor(value, dtype=mean.dtype, device=mean.device).expand_as(mean)
        for value in found
    )


def _positions(x: Tensor) -> int:
    return x.shape[2:].numel()


def _column(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(*value.shape, *[1] * (x.dim() - 2))


def _summed(value: Tensor, dims: tuple[int, ...]) -> Tensor:
    return value.sum(dims) if dims else value
