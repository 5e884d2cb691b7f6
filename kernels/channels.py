"""Norms of (N, C, S) tensors, forward and backward, in the launches of the tier that fits."""

import torch
from torch import Tensor

from fastnorm.contract import Inputs, NormSpec, Outputs, Tensors, are_of_samples, side_input
from fastnorm.tensors import dense, laid_out_as

from . import tiers
from .channel_types import Backward, Forward
from .clusters import MOST_CLUSTERS
from .launch import counters
from .masks import mask_for
from .plans import Plan, backward_plan, forward_plan, planned
from .tensors import accumulators, contiguous, dtypes_of


def channel_norm(inputs: Inputs, spec: NormSpec, differentiable: bool) -> Outputs:
    """act(norm(x) + residual), as `Engine.norm` does, for all norms except those of rows.

    x is (N, C, ...), not empty; weight and bias are (C,) or (N, C), rho and running statistics
    (C,). y has x's dtype and memory format.
    """
    x = dense(inputs.x)
    parameters = [contiguous(t) for t in inputs[2:]]
    t = Forward(x, laid_out_as(x, inputs.residual), *parameters)
    masked = side_input(spec.activation, t.residual is not None) == "mask" and differentiable
    averaged = t.running_mean is not None or t.running_var is not None
    kind = (planned(spec), are_of_samples(inputs, spec))
    key = (x.shape, x.is_contiguous(), dtypes_of(t), masked, *kind, averaged)
    filled = tiers.with_fallback(
        lambda state: _forward_undone_if_it_fails(forward_plan(*key, state), t, spec, masked)
    )
    if spec.use_input_stats:
        _written(inputs.running_mean, t.running_mean)
        _written(inputs.running_var, t.running_var)
    return filled.y, filled.bits, filled.stats


def _forward_undone_if_it_fails(
    plan: Plan, t: Forward, spec: NormSpec, masked: bool
) -> Forward | None:
    """_forward; if it raises, the running statistics stay as they were.

    The first launch updates them, so copies are kept if something may fail after it: the
    compilation of a second launch or, in the interpreter, a later program.
    """
    if t.x.is_cuda and (plan.second is None or plan.second.is_compiled_for(t.x)):
        return _forward(plan, t, spec, masked)
    running = (t.running_mean, t.running_var)
    before = [None if buffer is None else buffer.clone() for buffer in running]
    try:
        return _forward(plan, t, spec, masked)
    except BaseException:
        for buffer, former in zip(running, before, strict=True):
            if former is not None:
                buffer.copy_(former)
        raise


def _forward(plan: Plan, t: Forward, spec: NormSpec, masked: bool) -> Forward | None:
    """Run one plan; return the tensors read and written. None if a cluster is too large for the
    device: then nothing was done."""
    x = t.x
    t = t._replace(
        y=torch.empty_like(x),
        bits=mask_for(x, t.residual is not None, spec, masked),
        stats=accumulators(x, plan.stats),
        table=accumulators(x, plan.table),
        tickets=counters(x, "tickets", plan.tickets),
        barriers=_barriers(plan, x),
    )
    if plan.first is not None and not plan.first(t, (spec.momentum, spec.eps)):
        return None
    if plan.second is not None:
        plan.second(t, (spec.eps,))
    return t


def _barriers(plan: Plan, x: Tensor) -> Tensor | None:
    return counters(x, "barriers", MOST_CLUSTERS) if plan.tier == "cluster" else None


def channel_norm_backward(
    dy: Tensor,
    inputs: Inputs,
    mask: Tensor | None,
    stats: Tensor,
    needs: tuple[bool, ...],
    spec: NormSpec,
) -> Tensors:
    """(dx, dresidual, dweight, dbias, drho), as `Engine.norm_backward` has them."""
    x = dense(inputs.x)
    there = (True, True, *(parameter is not None for parameter in inputs[2:5]))
    needs = tuple([needed and given for needed, given in zip(needs, there, strict=True)])
    t = Backward(
        x,
        laid_out_as(x, dy),
        residual=laid_out_as(x, inputs.residual),
        bits=mask,
        weight=contiguous(inputs.weight),
        bias=contiguous(inputs.bias),
        rho=contiguous(inputs.rho),
        stats=stats,
    )
    kind = (planned(spec), are_of_samples(inputs, spec))
    key = (x.shape, x.is_contiguous(), dtypes_of(t), *kind, needs)
    filled = tiers.with_fallback(lambda state: _backward(backward_plan(*key, state), t, needs))
    dresidual = t.dy if needs[1] and spec.activation is None else filled.dresidual
    return filled.dx, dresidual, filled.dweight, filled.dbias, filled.drho


def _backward(plan: Plan, t: Backward, needs: tuple[bool, ...]) -> Backward | None:
    """Run one plan; return the tensors read and written. None if a cluster is too large."""
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


def _written(buffer: Tensor | None, updated: Tensor | None) -> None:
    """Tell autograd that a kernel wrote to the buffer; copy back from a contiguous copy."""
    if buffer is None or updated is None:
        return
    if updated is buffer:
        torch.autograd.graph.increment_version(buffer)
    else:
        buffer.copy_(updated)
