"""Layer and RMS normalisation of rows: x seen as (R, L), gamma and beta as (L,).

Sources: arXiv 1607.06450 and 1910.07467. RMS norm takes its statistics about 0: it has no mean, no
beta, and half of layer norm's table of sums and of what it keeps for the backward.
"""

import functools
import math
from typing import Any, NamedTuple

import torch
import triton

from . import geometry, tiers
from .clusters import MOST_CLUSTERS, ClusterLaunch
from .launch import (
    Launch,
    Tensors,
    contiguous,
    counters,
    dtypes_of,
    multiprocessors,
    statistics,
)
from .row_geometry import PARAMETERS_L, RowGeometry, choose
from .row_geometry import streaming as streaming_geometry
from .row_resident import row_norm_backward_kernel, row_norm_kernel, sum_partials_kernel
from .row_streaming import row_apply_kernel, row_dx_kernel, row_moments_kernel, row_sums_kernel

PLANS = 1024  # sizes whose launches are remembered
ROW_NORMS = ("layer", "rms")


class RowPlan(NamedTuple):
    """The launches of one direction at one size, and the scratch memory they share."""

    geometry: RowGeometry
    tier: str
    first: Launch | ClusterLaunch
    second: Launch | None
    planes: int  # statistics of a row that forward keeps, backward sums
    table: int  # elements of the table that programs publish in
    tickets: int
    groups: int  # programs that leave a share of dgamma and dbeta; 0: as many as clusters


@functools.lru_cache(PLANS)
def forward_plan(
    R: int,
    L: int,
    dtypes: tuple[torch.dtype | None, ...],
    norm: str,
    activation: str | None,
    tier_state: tiers.State,
) -> RowPlan:
    """The forward for R rows of L elements; `dtypes` are those of the call's tensors."""
    tier, shape = choose(R, L, False, tier_state)
    moments_planes = 3 if norm == "layer" else 1
    constants: dict[str, Any] = {"CENTRED": norm == "layer", "ACTIVATION": activation}
    planes = stats_planes(norm)
    if tier != "streaming":
        resident = _resident(row_norm_kernel, tier, shape, constants, shape.units)
        table = moments_planes * R * shape.members if tier == "cluster" else 0
        return RowPlan(shape, tier, resident, None, planes, table, 0, 0)
    wanted = triton.cdiv(geometry.ENOUGH_PROGRAMS, shape.units)
    steps = triton.cdiv(shape.members, min(wanted, shape.members))
    pieces = triton.cdiv(shape.members, steps)
    scalars = (*shape.scalars(0)[:3], pieces, steps, 0)
    first = Launch(
        row_moments_kernel, shape.units * pieces, scalars, {**constants, **shape.constants()},
        shape.num_warps,
    )  # fmt: skip
    second = Launch(
        row_apply_kernel, shape.units * shape.members, scalars, {**constants, **shape.constants()},
        shape.num_warps,
    )  # fmt: skip
    table = moments_planes * R * pieces
    return RowPlan(shape, tier, first, second, planes, table, shape.units, 0)


@functools.lru_cache(PLANS)
def backward_plan(
    R: int,
    L: int,
    dtypes: tuple[torch.dtype | None, ...],
    norm: str,
    activation: str | None,
    needs: tuple[bool, ...],
    sms: int,
    tier_state: tiers.State,
) -> RowPlan:
    """The backward for R rows of L elements on a device of so many multiprocessors."""
    tier, shape = choose(R, L, True, tier_state)
    constants: dict[str, Any] = {"CENTRED": norm == "layer", "ACTIVATION": activation}
    planes = stats_planes(norm)
    parameters = any(needs[2:])
    if tier != "streaming":
        # Shares of dgamma and dbeta: few, where they are long, not to cost more than dx.
        groups = min(shape.units, sms * (2 if shape.BLOCK_L <= 1024 else 1))
        groups = groups if parameters else shape.units
        resident = _resident(row_norm_backward_kernel, tier, shape, constants, groups)
        if tier == "cluster":
            return RowPlan(shape, tier, resident, None, planes, planes * R * shape.members, 0, 0)
        return RowPlan(shape, tier, resident, None, planes, 0, 0, groups if parameters else 0)
    shape = streaming_geometry(R, L, True)
    groups = min(shape.units, triton.cdiv(2 * sms, shape.members))
    scalars = (*shape.scalars(0)[:3], shape.members, 1, groups)
    constants = {**constants, **shape.constants()}
    first = Launch(
        row_sums_kernel,
        groups * shape.members,
        scalars,
        constants,
        shape.num_warps,
        shape.resident_registers,
    )
    adders = triton.cdiv(L, PARAMETERS_L) if parameters else 0
    second = Launch(
        row_dx_kernel,
        adders + shape.units * shape.members,
        scalars,
        {**constants, "PARAMETERS_L": PARAMETERS_L},
        shape.num_warps,
        shape.resident_registers,
    )
    return RowPlan(shape, tier, first, second, planes, planes * R * shape.members, 0, groups)


def _resident(
    kernel: Any, tier: str, shape: RowGeometry, constants: dict[str, Any], programs: int
) -> Launch | ClusterLaunch:
    if tier == "cluster":
        return ClusterLaunch(kernel, shape, constants)
    constants = {**constants, "CLUSTER": False, "HALF": 0, **shape.constants()}
    return Launch(
        kernel,
        programs,
        shape.scalars(programs),
        constants,
        shape.num_warps,
        shape.resident_registers,
    )


@functools.lru_cache(PLANS)
def _sum_launch(L: int, groups: int, _dtypes: tuple[torch.dtype | None, ...]) -> Launch:
    align = geometry.alignment(L)
    constants = {"ALIGN": align, "BLOCK_L": PARAMETERS_L}
    programs = triton.cdiv(L, PARAMETERS_L)
    return Launch(sum_partials_kernel, programs, (groups, L // align), constants, 4)


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
    inputs = (x, contiguous(residual), contiguous(weight), contiguous(bias))
    R, L = _rows(x, normalized_ndim)
    masked = differentiable and activation == "relu" and residual is not None
    key = (R, L, (*dtypes_of(inputs), torch.uint8 if masked else None), norm, activation)
    result = _forward(forward_plan(*key, tiers.state()), inputs, masked, eps)
    if result is None:
        result = _forward(forward_plan(*key, tiers.WITHOUT_CLUSTERS), inputs, masked, eps)
        assert result is not None
    return result


def _forward(
    plan: RowPlan, inputs: Tensors, masked: bool, eps: float
) -> tuple[torch.Tensor, torch.Tensor | None, tuple[torch.Tensor, ...]] | None:
    """What row_norm returns, by one plan; None where a cluster is too large for the device."""
    x = inputs[0]
    assert x is not None
    R, L = plan.geometry.R, plan.geometry.L
    y = torch.empty_like(x)
    bits = x.new_empty(R * -(-L // 8), dtype=torch.uint8) if masked else None
    stats, table = statistics(x, plan.planes * R), statistics(x, plan.table)
    assert stats is not None
    if plan.second is not None:
        plan.first((x, stats, table, counters(x, "tickets", plan.tickets)), (eps,))
        plan.second((*inputs, y, bits, stats))
        return y, bits, (stats,)
    barriers = counters(x, "barriers", MOST_CLUSTERS) if plan.tier == "cluster" else None
    tensors = (*inputs, y, bits, stats, table, barriers)
    if isinstance(plan.first, ClusterLaunch) and not plan.first.fits(tensors, (eps,)):
        return None
    plan.first(tensors, (eps,))
    return y, bits, (stats,)


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
) -> Tensors:
    """(dx, dresidual, dweight, dbias); None where `needs` says that nobody asked."""
    needs = (*needs[:2], needs[2] and weight is not None, needs[3] and bias is not None)
    x, dy, side = x.contiguous(), dy.contiguous(), contiguous(side)
    if activation is None and not any((needs[0], *needs[2:])):
        return None, dy if needs[1] else None, None, None
    masked = side is not None and activation == "relu"
    sides = (None, side) if masked else (side, None)
    inputs = (x, dy, *sides, contiguous(weight), contiguous(bias), *stats)
    R, L = _rows(x, normalized_ndim)
    key = (R, L, dtypes_of(inputs), norm, activation, needs, multiprocessors(x))
    result = _backward(backward_plan(*key, tiers.state()), inputs, needs, activation)
    if result is None:
        plan = backward_plan(*key, tiers.WITHOUT_CLUSTERS)
        result = _backward(plan, inputs, needs, activation)
        assert result is not None
    return result


def _backward(
    plan: RowPlan, inputs: Tensors, needs: tuple[bool, ...], activation: str | None
) -> Tensors | None:
    """What row_norm_backward returns, by one plan; None where a cluster is too large."""
    x, dy, _, _, weight, bias, _ = inputs
    assert x is not None
    dx = torch.empty_like(x) if needs[0] else None
    dresidual = torch.empty_like(x) if needs[1] and activation is not None else None
    dweight = torch.empty_like(weight) if needs[2] and weight is not None else None
    dbias = torch.empty_like(bias) if needs[3] and bias is not None else None
    parameters, L = needs[2] or needs[3], plan.geometry.L
    table, groups = statistics(x, plan.table), plan.groups
    if plan.second is not None:
        partial = statistics(x, plan.planes * groups * L) if parameters else None
        plan.first((*inputs, table, partial))
        plan.second((*inputs, table, partial, dx, dresidual, dweight, dbias))
    else:
        barriers = counters(x, "barriers", MOST_CLUSTERS) if plan.tier == "cluster" else None
        if isinstance(plan.first, ClusterLaunch):
            model = statistics(x, 1) if parameters else None
            tensors = (*inputs, dx, dresidual, model, table, barriers)
            groups = plan.first.clusters(tensors, ())
            if groups == 0:
                return None
        partial = statistics(x, plan.planes * groups * L) if parameters else None
        plan.first((*inputs, dx, dresidual, partial, table, barriers))
        if partial is not None:
            add = _sum_launch(L, groups, dtypes_of((partial, dweight, dbias)))
            add((partial, dweight, dbias))
    return dx, dy if needs[1] and activation is None else dresidual, dweight, dbias


def stats_planes(norm: str) -> int:
    """Statistics that a row keeps, and sums that its backward takes: without a mean one of each."""
    return 2 if norm == "layer" else 1


def _rows(x: torch.Tensor, normalized_ndim: int) -> tuple[int, int]:
    L = math.prod(x.shape[x.dim() - normalized_ndim :])
    return x.numel() // L, L
