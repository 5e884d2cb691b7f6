"""Layer and RMS normalisation of rows: x seen as (R, L), gamma and beta as (L,).

Sources: arXiv 1607.06450 and 1910.07467. RMS norm takes its statistics about 0: it has no mean, no
beta, and half of layer norm's table of sums and of what it keeps for the backward.
"""

import math

import torch

from . import tiers
from .clusters import MOST_CLUSTERS, ClusterLaunch
from .launch import counters, multiprocessors
from .masks import mask_bytes, side_input, unpacked
from .row_plans import RowPlan, backward_plan, forward_plan, sum_launch
from .tensors import Tensors, accumulators, contiguous, dtypes_of

ROW_NORMS = ("layer", "rms")
# y, the sum where there is an addend, ReLU's mask where it is kept, and the statistics.
Outputs = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor]


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
    inputs = (x, None, contiguous(residual), contiguous(weight), contiguous(bias))
    masked = differentiable and side_input(activation, residual is not None) == "mask"
    y, _, bits, stats = _norm(inputs, norm, normalized_ndim, eps, activation, masked)
    return y, bits, (stats,)


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
    inputs = (x.contiguous(), addend.contiguous(), None, contiguous(weight), contiguous(bias))
    y, total, _, stats = _norm(inputs, norm, normalized_ndim, eps, None, False)
    assert total is not None
    return y, total, (stats,)


def _norm(
    inputs: Tensors, norm: str, ndim: int, eps: float, activation: str | None, masked: bool
) -> Outputs:
    x = inputs[0]
    assert x is not None
    R, L = row_sizes(x, ndim)
    key = (R, L, (*dtypes_of(inputs), torch.uint8 if masked else None), norm, activation)
    return tiers.with_fallback(
        lambda state: _forward(forward_plan(*key, state), inputs, masked, eps)
    )


def _forward(plan: RowPlan, inputs: Tensors, masked: bool, eps: float) -> Outputs | None:
    """What _norm returns, by one plan; None where a cluster is too large for the device."""
    x, addend, *others = inputs
    assert x is not None
    R, L = plan.geometry.R, plan.geometry.L
    y = torch.empty_like(x)
    total = None if addend is None else torch.empty_like(x)
    bits = x.new_empty(mask_bytes(R, L), dtype=torch.uint8) if masked else None
    stats, table = accumulators(x, plan.planes * R), accumulators(x, plan.table)
    assert stats is not None
    if plan.second is not None:
        tickets = counters(x, "tickets", plan.tickets)
        plan.first((x, addend, total, stats, table, tickets), (eps,))
        plan.second((x if total is None else total, *others, y, bits, stats))
        return y, total, bits, stats
    barriers = counters(x, "barriers", MOST_CLUSTERS) if plan.tier == "cluster" else None
    tensors = (x, addend, total, *others, y, bits, stats, table, barriers)
    return (y, total, bits, stats) if plan.first(tensors, (eps,)) else None


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
    x, dy, side = x.contiguous(), dy.contiguous(), contiguous(side)
    if activation is None and not any((needs[0], *needs[2:])):
        return None, dy if needs[1] else None, None, None
    masked = side is not None and activation == "relu"
    sides = (None, side) if masked else (side, None)
    dsum = contiguous(dsum) if needs[0] else None
    inputs = (x, dy, *sides, contiguous(weight), contiguous(bias), *stats, dsum)
    R, L = row_sizes(x, normalized_ndim)
    key = (R, L, dtypes_of(inputs), norm, activation, needs, multiprocessors(x))
    return tiers.with_fallback(
        lambda state: _backward(backward_plan(*key, state), inputs, needs, activation)
    )


def _backward(
    plan: RowPlan, inputs: Tensors, needs: tuple[bool, ...], activation: str | None
) -> Tensors | None:
    """What row_norm_backward returns, by one plan; None where a cluster is too large."""
    x, dy, _, _, weight, bias, _, dsum = inputs
    assert x is not None
    dx = torch.empty_like(x) if needs[0] else None
    dresidual = torch.empty_like(x) if needs[1] and activation is not None else None
    dweight = torch.empty_like(weight) if needs[2] and weight is not None else None
    dbias = torch.empty_like(bias) if needs[3] and bias is not None else None
    parameters, L = needs[2] or needs[3], plan.geometry.L
    table, groups = accumulators(x, plan.table), plan.groups
    if plan.second is not None:
        partial = accumulators(x, plan.planes * groups * L) if parameters else None
        plan.first((*inputs[:-1], table, partial))
        plan.second((*inputs[:-1], table, partial, dsum, dx, dresidual, dweight, dbias))
    else:
        barriers = counters(x, "barriers", MOST_CLUSTERS) if plan.tier == "cluster" else None
        if isinstance(plan.first, ClusterLaunch):
            model = accumulators(x, 1) if parameters else None
            tensors = (*inputs, dx, dresidual, model, table, barriers)
            groups = plan.first.clusters(tensors, ())
        partial = accumulators(x, plan.planes * groups * L) if parameters else None
        if not plan.first((*inputs, dx, dresidual, partial, table, barriers)):
            return None
        if partial is not None:
            add = sum_launch(L, groups, dtypes_of((partial, dweight, dbias)))
            add((partial, dweight, dbias))
    return dx, dy if needs[1] and activation is None else dresidual, dweight, dbias


def row_relu_mask(mask: torch.Tensor, x: torch.Tensor, normalized_ndim: int) -> torch.Tensor:
    """The booleans of the mask that a forward kept for x, in x's shape."""
    return unpacked(mask, *row_sizes(x, normalized_ndim)).view(x.shape)


def row_sizes(x: torch.Tensor, normalized_ndim: int) -> tuple[int, int]:
    """(R, L) of x, whose sizes may be symbolic: its rows are its last dimensions."""
    leading = x.dim() - normalized_ndim
    return math.prod(x.shape[:leading]), math.prod(x.shape[leading:])
