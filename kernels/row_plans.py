"""The launches of a norm of rows at one size: which kernels, their geometry, their scratch."""

import functools
from typing import Any, NamedTuple

import torch
import triton

from . import geometry, tiers
from .clusters import ClusterLaunch
from .launch import Launch
from .row_geometry import PARAMETERS_L, RowGeometry, choose
from .row_geometry import streaming as streaming_geometry
from .row_resident import row_norm_backward_kernel, row_norm_kernel, sum_partials_kernel
from .row_streaming import row_apply_kernel, row_dx_kernel, row_moments_kernel, row_sums_kernel

PLANS = 1024  # sizes whose launches are remembered


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
def sum_launch(L: int, groups: int, _dtypes: tuple[torch.dtype | None, ...]) -> Launch:
    align = geometry.alignment(L)
    constants = {"ALIGN": align, "BLOCK_L": PARAMETERS_L}
    programs = triton.cdiv(L, PARAMETERS_L)
    return Launch(sum_partials_kernel, programs, (groups, L // align), constants, 4)


def stats_planes(norm: str) -> int:
    """Statistics that a row keeps, and sums that its backward takes: without a mean one of each."""
    return 2 if norm == "layer" else 1
