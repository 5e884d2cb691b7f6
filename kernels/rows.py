"""Layer and RMS normalisation of rows: x seen as (R, L), gamma and beta as (L,).

Sources: arXiv 1607.06450 and 1910.07467. RMS norm takes its statistics about 0: it has no mean, no
beta, and half of layer norm's table of sums and of what it keeps for the backward.
"""

import torch

from . import tiers
from .clusters import MOST_CLUSTERS, ClusterLaunch
from .launch import counters, multiprocessors, shared_memory
from .masks import mask_bytes, side_input
from .row_plans import RowPlan, backward_plan, forward_plan, sum_launch
from .row_tiles import Backward, Forward, Shares
from .tensors import Tensors, accumulation, accumulators, contiguous, dtypes_of, row_sizes


def row_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    norm: str,
    normalized_ndim: int,
    eps: float,
    activation: str | None,
    differentiable: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, tuple[torch.Tensor, ...]]:
    """y (contiguous, x's dtype), ReLU's mask beside a residual where `differentiable`, and the
    statistics of each row that row_norm_backward takes, in the accumulation dtype."""
    x = x.contiguous()
    masked = differentiable and side_input(activation, residual is not None) == "mask"
    kept = mask_bytes(*row_sizes(x, normalized_ndim)) if masked else 0
    bits = x.new_empty(kept, dtype=torch.uint8) if masked else None
    t = _norm(
        x, None, None, residual, weight, bias, bits, norm=norm,
        normalized_ndim=normalized_ndim, eps=eps, activation=activation,
    )  # fmt: skip
    return t.y, t.bits, (t.stats,)


def row_add_norm(
    x: torch.Tensor,
    addend: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    norm: str,
    normalized_ndim: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """y, what it is the norm of, x + addend (both contiguous, in x's dtype), and the statistics."""
    x = x.contiguous()
    t = _norm(
        x, addend, torch.empty_like(x), None, weight, bias, None, norm=norm,
        normalized_ndim=normalized_ndim, eps=eps, activation=None,
    )  # fmt: skip
    return t.y, t.total, (t.stats,)


def _norm(
    x: torch.Tensor,
    addend: torch.Tensor | None,
    total: torch.Tensor | None,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    bits: torch.Tensor | None,
    *,
    norm: str,
    normalized_ndim: int,
    eps: float,
    activation: str | None,
) -> Forward:
    """What was read and written; x is contiguous."""
    R, L = row_sizes(x, normalized_ndim)
    t = Forward(
        x,
        contiguous(addend),
        total,
        contiguous(residual),
        contiguous(weight),
        contiguous(bias),
        y=torch.empty_like(x),
        bits=bits,
    )
    key = (R, L, dtypes_of(t), norm, activation, multiprocessors(x), shared_memory(x))

    def run(state: tiers.State) -> Forward | None:
        plan = forward_plan(*key, state)
        filled = t._replace(
            stats=x.new_empty(plan.planes * R, dtype=accumulation(x)),
            table=accumulators(x, plan.table),
            counters=_counters(plan, x),
        )
        if not plan.first(filled, (eps,)):
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
    x: torch.Tensor,
    side: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    stats: tuple[torch.Tensor, ...],
    needs: tuple[bool, bool, bool, bool],
    *,
    norm: str,
    normalized_ndim: int,
    activation: str | None,
    dsum: torch.Tensor | None = None,
) -> Tensors:
    """(dx, dresidual, dweight, dbias); None where `needs` says that nobody asked.

    dx has dsum, the gradient that x itself has where it is a sum that was returned, added to it.
    """
    needs = (*needs[:2], needs[2] and weight is not None, needs[3] and bias is not None)
    if activation is None and not any((needs[0], *needs[2:])):
        return None, dy.contiguous() if needs[1] else None, None, None
    x, dy = x.contiguous(), dy.contiguous()
    masked = side is not None and activation == "relu"
    t = Backward(
        x,
        dy,
        residual=None if masked else contiguous(side),
        bits=side if masked else None,
        weight=contiguous(weight),
        bias=contiguous(bias),
        stats=stats[0],
        dsum=contiguous(dsum) if needs[0] else None,
        dx=torch.empty_like(x) if needs[0] else None,
        dresidual=torch.empty_like(x) if needs[1] and activation is not None else None,
        dweight=_like(weight, needs[2]),
        dbias=_like(bias, needs[3]),
    )
    R, L = row_sizes(x, normalized_ndim)
    key = (R, L, dtypes_of(t), norm, activation, needs, multiprocessors(x), shared_memory(x))
    tiers.with_fallback(lambda state: _backward(backward_plan(*key, state), t, any(needs[2:])))
    return t.dx, dy if needs[1] and activation is None else t.dresidual, t.dweight, t.dbias


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
