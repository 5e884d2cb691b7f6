"""The launches of a norm of rows at one size: which kernels, their geometry, their scratch."""

import functools
from typing import Any, NamedTuple

import torch
import triton

from . import row_geometry, tiers, tilings
from .clusters import ClusterLaunch
from .geometry import alignment
from .launch import PLANS, Launch
from .row_geometry import SHARES_L, RowGeometry
from .row_kernels import (
    add_shares_kernel,
    row_apply_kernel,
    row_dx_kernel,
    row_moments_kernel,
    row_norm_backward_kernel,
    row_norm_kernel,
    row_sums_kernel,
)
from .row_tiles import Backward, Forward
from .tensors import itemsize_of


class RowPlan(NamedTuple):
    """The launches of one direction at one size, and the scratch memory they share."""

    geometry: RowGeometry
    tier: str
    planes: int  # statistics of a row that forward keeps, backward sums
    first: Launch | ClusterLaunch
    second: Launch | None = None  # None where the first does it all
    table: int = 0  # elements of the table that programs publish in
    tickets: int = 0
    groups: int = 0  # programs that leave a share of dweight and dbias; 0: as many as clusters


@functools.lru_cache(PLANS)
def forward_plan(
    R: int,
    L: int,
    dtypes: tuple[torch.dtype | None, ...],
    norm: str,
    activation: str | None,
    sms: int,
    shared: int,
    tier_state: tiers.State,
) -> RowPlan:
    """The forward for R rows of L elements; `dtypes` are those of a Forward."""
    tier, geometry = row_geometry.choose(R, L, itemsize_of(dtypes), False, tier_state)
    t = Forward(*dtypes)
    streams = sum(each is not None for each in (t.x, t.addend, t.residual))
    geometry = geometry.pipelined(streams, shared)
    planes, moments = stats_planes(norm), 3 if norm == "layer" else 1
    if tier == "cluster":
        K = geometry.choices(norm, activation, cluster=True)
        first = ClusterLaunch(row_norm_kernel, geometry, K)
        table = moments * R * geometry.members
        return RowPlan(geometry, tier, planes, first, table=table)
    if tier == "one_program":
        groups = min(geometry.units, sms * geometry.at_once)
        launch = _launch(row_norm_kernel, groups, 1, geometry, norm, activation)
        return RowPlan(geometry, tier, planes, launch)
    wanted = triton.cdiv(tilings.ENOUGH_PROGRAMS, geometry.units)
    steps = triton.cdiv(geometry.members, min(wanted, geometry.members))
    parts = triton.cdiv(geometry.members, steps)
    each = row_geometry.pointwise(R, L, itemsize_of(dtypes))
    aligned_L = L // alignment(L)
    return RowPlan(
        geometry,
        tier,
        planes,
        first=Launch(
            row_moments_kernel,
            geometry.units * parts,
            (R, aligned_L, parts, steps),
            {"K": geometry.choices(norm, activation)},
            geometry.num_warps,
        ),
        second=Launch(
            row_apply_kernel,
            each.units * each.members,
            (R, aligned_L, each.units),
            {"K": each.choices(norm, activation)},
            each.num_warps,
        ),
        table=moments * R * parts,
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
    shared: int,
    tier_state: tiers.State,
) -> RowPlan:
    """The backward on a device of so many multiprocessors; `dtypes` are those of a Backward."""
    tier, geometry = row_geometry.choose(R, L, itemsize_of(dtypes), True, tier_state)
    t = Backward(*dtypes)
    streams = sum(each is not None for each in (t.x, t.dy, t.residual, t.dsum))
    geometry = geometry.pipelined(streams, shared)
    planes, parameters = stats_planes(norm), any(needs[2:])
    table = planes * R * geometry.members
    if tier == "cluster":
        K = geometry.choices(norm, activation, cluster=True)
        first = ClusterLaunch(row_norm_backward_kernel, geometry, K)
        return RowPlan(geometry, tier, planes, first, table=table)
    if tier == "one_program":
        groups = min(geometry.units, sms * geometry.at_once)
        launch = _launch(row_norm_backward_kernel, groups, 1, geometry, norm, activation)
        return RowPlan(geometry, tier, planes, launch, groups=groups if parameters else 0)
    groups = min(geometry.units, max(sms // geometry.members, 1))
    each = row_geometry.pointwise(R, L, itemsize_of(dtypes))
    adders = triton.cdiv(L, SHARES_L) if parameters else 0
    scalars = (R, L // alignment(L), each.units, geometry.members, groups)
    return RowPlan(
        geometry,
        tier,
        planes,
        first=_launch(row_sums_kernel, groups, geometry.members, geometry, norm, activation),
        second=Launch(
            row_dx_kernel,
            adders + each.units * each.members,
            scalars,
            {"K": each.choices(norm, activation), "SHARES_L": SHARES_L},
            each.num_warps,
            each.registers,
        ),
        table=table,
        groups=groups,
    )


def _launch(
    kernel: Any, groups: int, members: int, geometry: RowGeometry, norm: str, activation: str | None
) -> Launch:
    """Of groups of so many programs, which take blocks of rows in turns."""
    return Launch(
        kernel,
        groups * members,
        geometry.scalars(groups),
        {"K": geometry.choices(norm, activation)},
        geometry.num_warps,
        geometry.registers,
    )


@functools.lru_cache(PLANS)
def sum_launch(L: int, groups: int, _dtypes: tuple[torch.dtype | None, ...]) -> Launch:
    align = alignment(L)
    constants = {"ALIGN": align, "BLOCK_L": SHARES_L}
    programs = triton.cdiv(L, SHARES_L)
    return Launch(add_shares_kernel, programs, (groups, L // align), constants, 4)


def stats_planes(norm: str) -> int:
    """Statistics that a row keeps, and sums that its backward takes: without a mean one of each."""
    return 2 if norm == "layer" else 1
