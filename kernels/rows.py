"""Layer and RMS normalisation of rows: x seen as (R, L), gamma and beta as (L,).

Sources: arXiv 1607.06450 and 1910.07467. RMS norm takes its statistics about 0: it has no mean, no
beta, and half of layer norm's table of sums and of what it keeps for the backward.
"""

import torch

from fastnorm.contract import Inputs, NormSpec, Outputs, Tensors
from fastnorm.tensors import accumulation

from . import tiers
from .clusters import MOST_CLUSTERS, ClusterLaunch
from .launch import counters, multiprocessors, shared_memory
from .masks import mask_for
from .row_plans import RowPlan, backward_plan, forward_plan, sum_launch
from .row_tiles import Backward, Forward, Shares
from .tensors import accumulators, contiguous, dtypes_of, row_sizes


def row_norm(inputs: Inputs, spec: NormSpec, differentiable: bool) -> Outputs:
    """y (contiguous, x's dtype), ReLU's mask beside a residual where `differentiable`, and the
    statistics of each row that row_norm_backward takes, in the accumulation dtype."""
    x, residual = inputs.x.contiguous(), contiguous(inputs.residual)
    weight, bias = contiguous(inputs.weight), contiguous(inputs.bias)
    bits = mask_for(x, residual is not None, spec, differentiable)
    t = _norm(Forward(x, None, None, residual, weight, bias, torch.empty_like(x), bits), spec)
    return t.y, t.bits, t.stats


def row_add_norm(inputs: Inputs, spec: NormSpec) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y, what it is the norm of, x + residual (both contiguous, in x's dtype), and the
    statistics."""
    x, addend = inputs.x.contiguous(), contiguous(inputs.residual)
    weight, bias = contiguous(inputs.weight), contiguous(inputs.bias)
    total, y = torch.empty_like(x), torch.empty_like(x)
    t = _norm(Forward(x, addend, total, None, weight, bias, y, None), spec)
    return t.y, t.total, t.stats


def _norm(t: Forward, spec: NormSpec) -> Forward:
    """t with the statistics and y, by the launches of the plan for its sizes; x is contiguous."""
    x = t.x
    R, L = row_sizes(x, spec.groups)
    key = (R, L, dtypes_of(t), spec.norm, spec.activation, multiprocessors(x), shared_memory(x))

    def run(state: tiers.State) -> Forward | None:
        plan = forward_plan(*key, state)
        filled = t._replace(
            stats=x.new_empty(plan.planes * R, dtype=accumulation(x)),
            table=accumulators(x, plan.table),
            counters=_counters(plan, x),
        )
        if not plan.first(filled, (spec.eps,)):
            return None
        if plan.second is not None:
            plan.second(filled)
        return filled

    return tiers.with_fallback(run)


def _counters(plan: RowPlan, x: torch.Tensor) -> torch.Tensor | None:
    """Tickets, or the barriers of clusters."""
    if plan.tier == "cluster":
        return counters(x, "barriers", MOST_CLUSTERS)
    return counters(x, "tickets", plan.tickets)


def row_norm_backward(
    dy: torch.Tensor,
    inputs: Inputs,
    mask: torch.Tensor | None,
    stats: torch.Tensor,
    needs: tuple[bool, ...],
    spec: NormSpec,
    dsum: torch.Tensor | None = None,
) -> Tensors:
    """(dx, dresidual, dweight, dbias); None where `needs` says that nobody asked.

    dx has dsum, the gradient that x itself has where it is a sum that was returned, added to it.
    """
    weight, bias, fused = inputs.weight, inputs.bias, spec.activation is not None
    needs = (*needs[:2], needs[2] and weight is not None, needs[3] and bias is not None)
    if not fused and not any((needs[0], *needs[2:])):
        return None, dy.contiguous() if needs[1] else None, None, None
    x, dy = inputs.x.contiguous(), dy.contiguous()
    t = Backward(
        x,
        dy,
        residual=contiguous(inputs.residual),
        bits=mask,
        weight=contiguous(weight),
        bias=contiguous(bias),
        stats=stats,
        dsum=contiguous(dsum) if needs[0] else None,
        dx=torch.empty_like(x) if needs[0] else None,
        dresidual=torch.empty_like(x) if needs[1] and fused else None,
        dweight=_like(weight, needs[2]),
        dbias=_like(bias, needs[3]),
    )
    R, L = row_sizes(x, spec.groups)
    numbers = (needs, multiprocessors(x), shared_memory(x))
    key = (R, L, dtypes_of(t), spec.norm, spec.activation, *numbers)
    tiers.with_fallback(lambda state: _backward(backward_plan(*key, state), t, any(needs[2:])))
    return t.dx, dy if needs[1] and not fused else t.dresidual, t.dweight, t.dbias


def _like(parameter: torch.Tensor | None, needed: bool) -> torch.Tensor | None:
    """Room for a parameter's gradient, where it is needed."""
    if parameter is None or not needed:
        return None
    return torch.empty_like(parameter, memory_format=torch.contiguous_format)


def _backward(plan: RowPlan, t: Backward, parameters: bool) -> bool | None:
    """Fill t's gradients by one plan; None where a cluster is too large."""
    x, L, groups = t.x, plan.geometry.L, plan.groups
    t = t._replace(table=accumulators(x, plan.table))
    if isinstance(plan.first, ClusterLaunch):
        t = t._replace(
            partial=accumulators(x, 1) if parameters else None, barriers=_counters(plan, x)
        )
        groups = plan.first.clusters(t, ())
    if parameters:
        t = t._replace(partial=accumulators(x, plan.planes * groups * L))
    if not plan.first(t):
        return None
    if plan.second is not None:
        plan.second(t)
    elif t.partial is not None:
        shares = Shares(t.partial, t.dweight, t.dbias)
        sum_launch(L, groups, dtypes_of(shares))(shares)
    return True
