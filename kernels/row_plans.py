"""The launches of a norm of rows at one size: which kernels, their geometry, their scratch."""

import functools
from typing import Any, NamedTuple

import torch
import triton

from . import row_geometry, tiers, tilings
from .clusters import ClusterLaunch
from .geometry import alignment
from .launch import PLANS, Launch
from .row_geometry import PARAMETERS_L, REGISTERS, RowGeometry
from .row_resident import row_norm_backward_kernel, row_norm_kernel, sum_partials_kernel
from .row_streaming import row_apply_kernel, row_dx_kernel, row_moments_kernel, row_sums_kernel


class RowPlan(NamedTuple):
    """The launches of one direction at one size, and the scratch memory they share."""

    geometry: RowGeometry
    tier: str
    planes: int  # statistics of a row that forward keeps, backward sums
    first: Launch | ClusterLaunch
    second: Launch | None = None  # None where the first does it all
    table: int = 0  # elements of the table that programs publish in
    tickets: int = 0
    groups: int = 0  # programs that leave a share of dgamma and dbeta; 0: as many as clusters


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
    tier, geometry = row_geometry.choose(R, L, False, tier_state)
    constants = _constants(norm, activation)
    planes = stats_planes(norm)
    moments_planes = 3 if norm == "layer" else 1
    if tier != "streaming":
        first = _resident(row_norm_kernel, tier, geometry, constants, geometry.units)
        table = moments_planes * R * geometry.members if tier == "cluster" else 0
        return RowPlan(geometry, tier, planes, first, table=table)
    wanted = triton.cdiv(tilings.ENOUGH_PROGRAMS, geometry.units)
    steps = triton.cdiv(geometry.members, min(wanted, geometry.members))
    pieces = triton.cdiv(geometry.members, steps)
    scalars = (*geometry.sizes, geometry.units, pieces, steps, 0)
    constants |= geometry.constants()
    warps, tiles = geometry.num_warps, geometry.units * geometry.members
    return RowPlan(
        geometry,
        tier,
        planes,
        first=Launch(row_moments_kernel, geometry.units * pieces, scalars, constants, warps),
        second=Launch(row_apply_kernel, tiles, scalars, constants, warps),
        table=moments_planes * R * pieces,
        tickets=geometry.units,
    )


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
    tier, geometry = row_geometry.choose(R, L, True, tier_state)
    constants = _constants(norm, activation)
    planes = stats_planes(norm)
    table = planes * R * geometry.members
    units, members = geometry.units, geometry.members
    parameters = any(needs[2:])
    if tier != "streaming":
        # Shares of dgamma and dbeta: few, where they are long, not to cost more than dx.
        few = min(units, sms * (2 if geometry.BLOCK_L <= 1024 else 1))
        groups = few if parameters else units
        first = _resident(row_norm_backward_kernel, tier, geometry, constants, groups)
        if tier == "cluster":
            return RowPlan(geometry, tier, planes, first, table=table)
        return RowPlan(geometry, tier, planes, first, groups=groups if parameters else 0)
    groups = min(units, triton.cdiv(2 * sms, members))
    scalars = (*geometry.sizes, units, members, 1, groups)
    constants |= {**geometry.constants(), "PARAMETERS_L": PARAMETERS_L}
    adders = triton.cdiv(L, PARAMETERS_L) if parameters else 0
    programs, warps = adders + units * members, geometry.num_warps
    return RowPlan(
        geometry,
        tier,
        planes,
        first=Launch(row_sums_kernel, groups * members, scalars, constants, warps, REGISTERS),
        second=Launch(row_dx_kernel, programs, scalars, constants, warps, REGISTERS),
        table=table,
        groups=groups,
    )


def _constants(norm: str, activation: str | None) -> dict[str, Any]:
    return {"CENTRED": norm == "layer", "ACTIVATION": activation}


def _resident(
    kernel: Any, tier: str, geometry: RowGeometry, constants: dict[str, Any], programs: int
) -> Launch | ClusterLaunch:
    if tier == "cluster":
        return ClusterLaunch(kernel, geometry, constants)
    constants = {**constants, "CLUSTER": False, **geometry.constants()}
    scalars = geometry.scalars(programs)
    return Launch(kernel, programs, scalars, constants, geometry.num_warps, REGISTERS)


@functools.lru_cache(PLANS)
def sum_launch(L: int, groups: int, _dtypes: tuple[torch.dtype | None, ...]) -> Launch:
    align = alignment(L)
    constants = {"ALIGN": align, "BLOCK_L": PARAMETERS_L}
    programs = triton.cdiv(L, PARAMETERS_L)
    return Launch(sum_partials_kernel, programs, (groups, L // align), constants, 4)


def stats_planes(norm: str) -> int:
    """Statistics that a row keeps, and sums that its backward takes: without a mean one of each."""
    return 2 if norm == "layer" else 1
