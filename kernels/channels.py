"""Norms of (N, C, S) tensors, forward and backward, in the launches of the tier that fits them."""

import torch

from . import tiers
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
    residual = laid_out_as(x, residual)
    parameters = (contiguous(weight), contiguous(bias), contiguous(rho))
    running = (contiguous(running_mean), contiguous(running_var))
    spec = Norm(norm, groups, use_input_stats, activation)
    shared = (x, residual, *parameters)
    masked = differentiable and side_input(activation, residual is not None) == "mask"
    dtypes = (*dtypes_of((*shared, *running)), torch.uint8 if masked else None)
    averaged = running_mean is not None or running_var is not None
    key = (x.shape, x.is_contiguous(), dtypes, spec, averaged)
    result = tiers.with_fallback(
        lambda state: _forward_undone_if_it_fails(
            forward_plan(*key, state), shared, running, masked, momentum, eps
        )
    )
    if use_input_stats:
        for buffer, updated in zip((running_mean, running_var), running, strict=True):
            if buffer is not None and updated is not None:
                _written(buffer, updated)
    return result


def _forward_undone_if_it_fails(
    plan: Plan, shared: Tensors, running: Tensors, masked: bool, momentum: float, eps: float
) -> Outputs | None:
    """_forward, which where it raises leaves the running statistics as they were.

    A first launch updates them, so copies are kept where something may fail after it: a second
    launch yet to be compiled, or, interpreted, a later program.
    """
    x = shared[0]
    assert x is not None
    if x.is_cuda and (plan.second is None or plan.second.is_compiled_for(x)):
        return _forward(plan, shared, running, masked, momentum, eps)
    before = [None if buffer is None else buffer.clone() for buffer in running]
    try:
        return _forward(plan, shared, running, masked, momentum, eps)
    except BaseException:
        for buffer, former in zip(running, before, strict=True):
            if buffer is not None and former is not None:
                buffer.copy_(former)
        raise


def _forward(
    plan: Plan, shared: Tensors, running: Tensors, masked: bool, momentum: float, eps: float
) -> Outputs | None:
    """What channel_norm returns, by one plan; None, with nothing done, where a cluster is too large
    for the device."""
    x = shared[0]
    assert x is not None
    y = torch.empty_like(x)
    bits = x.new_empty(plan.bits, dtype=torch.uint8) if masked else None
    stats, table = accumulators(x, plan.stats), accumulators(x, plan.table)
    tickets = counters(x, "tickets", plan.tickets)
    if plan.tier != "streaming":
        barriers = counters(x, "barriers", MOST_CLUSTERS) if plan.tier == "cluster" else None
        tensors = (*shared, *running, y, bits, stats, table, tickets, barriers)
        assert plan.first is not None
        if not plan.first(tensors, (momentum, eps)):
            return None
    else:
        constants: Tensors = running
        if plan.first is not None:
            plan.first((x, *running, stats, table, tickets), (momentum, eps))
            constants = (None, None)
        assert plan.second is not None
        plan.second((*shared, *constants, y, bits, stats), (eps,))
    assert stats is not None
    return y, bits, (stats,)


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
    weight, bias, rho = contiguous(weight), contiguous(bias), contiguous(rho)
    needs = (*needs[:2], needs[2] and weight is not None, needs[3] and bias is not None, needs[4])
    dy = laid_out_as(x, dy)
    masked = side is not None and activation == "relu"
    residual = None if masked else laid_out_as(x, side)
    spec = Norm(norm, groups, use_input_stats, activation)
    inputs = (x, dy, residual, side if masked else None, weight, bias, rho, *stats)
    key = (x.shape, x.is_contiguous(), dtypes_of(inputs), spec, needs)
    dx, dresidual, *parameters = tiers.with_fallback(
        lambda state: _backward(backward_plan(*key, state), inputs, needs)
    )
    if needs[1] and activation is None:
        dresidual = dy
    return dx, dresidual, *parameters


def _backward(plan: Plan, inputs: Tensors, needs: tuple[bool, ...]) -> Tensors | None:
    """What channel_norm_backward returns, by one plan; None where a cluster is too large."""
    x, _, _, _, weight, bias, rho, _ = inputs
    assert x is not None
    dx = torch.empty_like(x) if needs[0] else None
    dresidual = torch.empty_like(x) if plan.dresidual else None
    gradients = tuple(
        torch.empty_like(parameter) if needed and parameter is not None else None
        for parameter, needed in zip((weight, bias, rho), needs[2:], strict=True)
    )
    table = accumulators(x, plan.table)
    tickets = counters(x, "tickets", plan.tickets)
    if plan.tier != "streaming":
        barriers = counters(x, "barriers", MOST_CLUSTERS) if plan.tier == "cluster" else None
        tensors = (*inputs, dx, dresidual, *gradients, table, tickets, barriers)
        assert plan.first is not None
        if not plan.first(tensors):
            return None
    else:
        sums = accumulators(x, plan.sums)
        if plan.first is not None:
            plan.first((*inputs, sums, *gradients, table, tickets))
        if plan.second is not None:
            plan.second((*inputs, sums, dx, dresidual))
    return dx, dresidual, *gradients


def channel_relu_mask(mask: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The booleans of the mask that a forward kept for x, in x's shape."""
    view = view_of(x.shape, dense(x).is_contiguous(), x.element_size(), False)
    active = unpacked(mask, *view.runs)
    if view.channels_last:
        N, C = x.shape[:2]
        return active.view(N, *x.shape[2:], C).movedim(-1, 1)
    return active.view(x.shape)


def _written(buffer: torch.Tensor, updated: torch.Tensor) -> None:
    """Tell autograd that a kernel wrote to the buffer; copy back what went to a contiguous copy."""
    if updated is buffer:
        torch.autograd.graph.increment_version(buffer)
    else:
        buffer.copy_(updated)
