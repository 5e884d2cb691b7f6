"""Norms of (N, C, S) tensors, forward and backward, in the launches of the tier that fits them."""

import torch

from . import tiers
from .channel_types import Backward, Forward
from .clusters import MOST_CLUSTERS
from .geometry import view_of
from .launch import counters
from .masks import side_input, unpacked
from .plans import Norm, Plan, backward_plan, forward_plan
from .tensors import Tensors, accumulators, contiguous, dense, dtypes_of, laid_out_as

Outputs = tuple[torch.Tensor, torch.Tensor | None, tuple[torch.Tensor, ...]]


def channel_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    rho: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    *,
    norm: str,
    groups: int,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    activation: str | None,
    differentiable: bool,
) -> Outputs:
    """y = act(norm(x) + residual) for norm in batch, instance, batch_instance, mean_only_batch,
    group.

    x is (N, C, ...), not empty; weight, bias, rho and the running statistics are (C,). Running
    statistics are updated in place where `use_input_stats`. Returns y in x's dtype and memory
    format, the side input and the statistics that channel_norm_backward takes; of the side input
    only what was not there before, a ReLU mask, and only where `differentiable`.
    """
    x = dense(x)
    t = Forward(
        x,
        laid_out_as(x, residual),
        contiguous(weight),
        contiguous(bias),
        contiguous(rho),
        contiguous(running_mean),
        contiguous(running_var),
    )
    spec = Norm(norm, groups, use_input_stats, activation)
    masked = differentiable and side_input(activation, residual is not None) == "mask"
    averaged = running_mean is not None or running_var is not None
    key = (x.shape, x.is_contiguous(), dtypes_of(t), masked, spec, averaged)
    filled = tiers.with_fallback(
        lambda state: _forward_undone_if_it_fails(
            forward_plan(*key, state), t, masked, (momentum, eps)
        )
    )
    if use_input_stats:
        _written(running_mean, t.running_mean)
        _written(running_var, t.running_var)
    return filled.y, filled.bits, (filled.stats,)


def _forward_undone_if_it_fails(
    plan: Plan, t: Forward, masked: bool, floats: tuple[float, float]
) -> Forward | None:
    """_forward, which where it raises leaves the running statistics as they were.

    A first launch updates them, so copies are kept where something may fail after it: a second
    launch yet to be compiled, or, interpreted, a later program.
    """
    if t.x.is_cuda and (plan.second is None or plan.second.is_compiled_for(t.x)):
        return _forward(plan, t, masked, floats)
    running = (t.running_mean, t.running_var)
    before = [None if buffer is None else buffer.clone() for buffer in running]
    try:
        return _forward(plan, t, masked, floats)
    except BaseException:
        for buffer, former in zip(running, before, strict=True):
            if former is not None:
                buffer.copy_(former)
        raise


def _forward(plan: Plan, t: Forward, masked: bool, floats: tuple[float, float]) -> Forward | None:
    """What was read and written, by one plan; None, with nothing done, where a cluster is too large
    for the device."""
    x = t.x
    t = t._replace(
        y=torch.empty_like(x),
        bits=x.new_empty(plan.bits, dtype=torch.uint8) if masked else None,
        stats=accumulators(x, plan.stats),
        table=accumulators(x, plan.table),
        tickets=counters(x, "tickets", plan.tickets),
        barriers=_barriers(plan, x),
    )
    if plan.first is not None and not plan.first(t, floats):
        return None
    if plan.second is not None:
        plan.second(t, floats[1:])
    return t


def _barriers(plan: Plan, x: torch.Tensor) -> torch.Tensor | None:
    return counters(x, "barriers", MOST_CLUSTERS) if plan.tier == "cluster" else None


def channel_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    side: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    rho: torch.Tensor | None,
    stats: tuple[torch.Tensor, ...],
    needs: tuple[bool, bool, bool, bool, bool],
    *,
    norm: str,
    groups: int,
    use_input_stats: bool,
    activation: str | None,
) -> Tensors:
    """(dx, dresidual, dweight, dbias, drho); None where `needs` says that nobody asked.

    `side` is what `side_input` named: ReLU's mask, the residual or None.
    """
    x = dense(x)
    needs = (
        *needs[:2],
        needs[2] and weight is not None,
        needs[3] and bias is not None,
        needs[4] and rho is not None,
    )
    masked = side is not None and activation == "relu"
    t = Backward(
        x,
        laid_out_as(x, dy),
        residual=None if masked else laid_out_as(x, side),
        bits=side if masked else None,
        weight=contiguous(weight),
        bias=contiguous(bias),
        rho=contiguous(rho),
        stats=stats[0],
    )
    spec = Norm(norm, groups, use_input_stats, activation)
    key = (x.shape, x.is_contiguous(), dtypes_of(t), spec, needs)
    filled = tiers.with_fallback(lambda state: _backward(backward_plan(*key, state), t, needs))
    dresidual = t.dy if needs[1] and activation is None else filled.dresidual
    return filled.dx, dresidual, filled.dweight, filled.dbias, filled.drho


def _backward(plan: Plan, t: Backward, needs: tuple[bool, ...]) -> Backward | None:
    """What was read and written, by one plan; None where a cluster is too large."""
    x = t.x
    t = t._replace(
        dx=torch.empty_like(x) if needs[0] else None,
        dresidual=torch.empty_like(x) if plan.dresidual else None,
        dweight=torch.empty_like(t.weight) if needs[2] else None,
        dbias=torch.empty_like(t.bias) if needs[3] else None,
        drho=torch.empty_like(t.rho) if needs[4] else None,
        sums=accumulators(x, plan.sums),
        table=accumulators(x, plan.table),
        tickets=counters(x, "tickets", plan.tickets),
        barriers=_barriers(plan, x),
    )
    if plan.first is not None and not plan.first(t):
        return None
    if plan.second is not None:
        plan.second(t)
    return t


def channel_relu_mask(mask: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The booleans of the mask that a forward kept for x, in x's shape."""
    view = view_of(x.shape, dense(x).is_contiguous(), x.element_size(), False)
    active = unpacked(mask, *view.runs)
    if view.channels_last:
        N, C = x.shape[:2]
        return active.view(N, *x.shape[2:], C).movedim(-1, 1)
    return active.view(x.shape)


def _written(buffer: torch.Tensor | None, updated: torch.Tensor | None) -> None:
    """Tell autograd that a kernel wrote to the buffer; copy back what went to a contiguous copy."""
    if buffer is None or updated is None:
        return
    if updated is buffer:
        torch.autograd.graph.increment_version(buffer)
    else:
        buffer.copy_(updated)
