"""Layer and RMS normalisation of rows: x seen as (R, L), gamma and beta as (A, L).

Sources: arXiv 1607.06450 and 1910.07467. RMS norm takes its statistics about 0: it has no mean, and
a beta only if rows are shifted. Its table of sums and its statistics for the backward have half the
size of layer norm's.

Parameters of shape `normalized_shape` serve all rows, A = 1. Others have x's number of dimensions.
Their leading sizes are x's or 1, and the sizes that are not 1 are neighbours. With `inner` the
product of x's leading sizes behind them, row r has parameter row (r // inner) % A.
"""

import torch

from fastnorm.contract import Inputs, NormSpec, Outputs, Tensors
from fastnorm.tensors import accumulation

from . import tiers
from .launch import counters, multiprocessors, shared_memory
from .masks import mask_for
from .row_geometry import RowSpec
from .row_plans import backward_plan, forward_plan, sum_launch
from .row_types import Backward, Forward, Shares
from .tensors import accumulators, contiguous, dtypes_of, row_sizes


def row_norm(inputs: Inputs, spec: NormSpec, differentiable: bool) -> Outputs:
    """y (contiguous, x's dtype), ReLU's mask if there is a residual and it is `differentiable`, and
    the statistics of each row for row_norm_backward, in the accumulation dtype."""
    x, residual = inputs.x.contiguous(), contiguous(inputs.residual)
    weight, bias = contiguous(inputs.weight), contiguous(inputs.bias)
    bits = mask_for(x, residual is not None, spec, differentiable)
    t = Forward(x, None, None, residual, weight, bias, torch.empty_like(x), bits)
    t = forward(t, *row_sizes(x, spec.groups), planned(inputs, spec), spec.eps)
    return t.y, t.bits, t.stats


def row_add_norm(inputs: Inputs, spec: NormSpec) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The norm of x + residual, that sum (both contiguous, in x's dtype), and the statistics."""
    x, addend = inputs.x.contiguous(), contiguous(inputs.residual)
    weight, bias = contiguous(inputs.weight), contiguous(inputs.bias)
    total, y = torch.empty_like(x), torch.empty_like(x)
    t = Forward(x, addend, total, None, weight, bias, y, None)
    t = forward(t, *row_sizes(x, spec.groups), planned(inputs, spec), spec.eps)
    return t.y, t.total, t.stats


def planned(inputs: Inputs, spec: NormSpec) -> RowSpec:
    """The inputs of plans from a call's spec and the shapes of its parameters."""
    found = RowSpec(spec.norm, spec.activation)
    parameter = inputs.bias if inputs.weight is None else inputs.weight
    if parameter is None or parameter.dim() == spec.groups:
        return found
    return found.with_parameters(parameter.shape, inputs.x.shape, spec.groups)


def forward(t: Forward, R: int, L: int, spec: RowSpec, eps: float) -> Forward:
    """t with the statistics and y, by the launches of the plan for its sizes; x is contiguous."""
    x = t.x
    key = (R, L, dtypes_of(t), spec, multiprocessors(x), shared_memory(x))
    plan = forward_plan(*key, tiers.state())
    t = t._replace(
        stats=x.new_empty(spec.planes * R, dtype=accumulation(x)),
        table=accumulators(x, plan.table),
        tickets=counters(x, "tickets", plan.tickets),
    )
    plan.first(t, (eps,))
    if plan.second is not None:
        plan.second(t)
    return t


def row_norm_backward(
    dy: torch.Tensor,
    inputs: Inputs,
    mask: torch.Tensor | None,
    stats: torch.Tensor,
    needs: tuple[bool, ...],
    spec: NormSpec,
    dsum: torch.Tensor | None = None,
) -> Tensors:
    """(dx, dresidual, dweight, dbias); None if `needs` says that nobody wants it.

    dsum is added to dx: x's own gradient, if x is a sum that was returned.
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
        dweight=like(weight, needs[2]),
        dbias=like(bias, needs[3]),
    )
    backward(t, *row_sizes(x, spec.groups), planned(inputs, spec))
    return t.dx, dy if needs[1] and not fused else t.dresidual, t.dweight, t.dbias


def like(parameter: torch.Tensor | None, needed: bool) -> torch.Tensor | None:
    """Memory for a parameter's gradient, if it is needed."""
    if parameter is None or not needed:
        return None
    return torch.empty_like(parameter, memory_format=torch.contiguous_format)


def backward(t: Backward, R: int, L: int, spec: RowSpec) -> None:
    """Fill t's gradients; x is contiguous."""
    x = t.x
    # Rows with their own parameters have their own gradients too: there are no shares.
    shares = t.dweight is not None or t.dbias is not None
    shares = shares and spec.parameters(R) != "own"
    key = (R, L, dtypes_of(t), spec, shares, multiprocessors(x), shared_memory(x))
    plan = backward_plan(*key, tiers.state())
    geometry, groups = plan.geometry, plan.groups
    t = t._replace(table=accumulators(x, plan.table))
    if shares:
        room = (1 + spec.sums_both(t)) * geometry.shares(groups) * geometry.L
        t = t._replace(partial=accumulators(x, room))
    plan.first(t)
    if plan.second is not None:
        plan.second(t)
    elif t.partial is not None:
        left = Shares(t.partial, t.dweight, t.dbias)
        grouped = (geometry.units, geometry.parameter_rows) if geometry.grouped else None
        sum_launch(geometry.L, groups, grouped, dtypes_of(left))(left)
