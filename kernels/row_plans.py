"""The launches of a norm of rows at one size: which kernels, their geometry, their scratch."""

import functools
from typing import Any, NamedTuple

import torch
import triton

from . import row_geometry, tiers, tilings
from .geometry import alignment
from .launch import PLANS, Launch
from .row_geometry import (
    MOST_OF_FEW_PARTS,
    SHARES_BESIDE,
    SHARES_GROUPED,
    SHARES_LONG,
    SHARES_SHORT,
    SHORT_ROW,
    RowGeometry,
    RowSpec,
)
from .row_one_launch import row_norm_backward_kernel, row_norm_kernel
from .row_room import backward_room, forward_room, is_exact
from .row_several_tiles import several_tiles_row_kernel
from .row_shares import add_shares_kernel
from .row_two_launches import row_apply_kernel, row_dx_kernel, row_moments_kernel, row_sums_kernel
from .row_types import Backward, Forward
from .tensors import itemsize_of

FULL_WAVE = 0.85  # of the programs that fit at once
MANY_WAVES = 4


class RowPlan(NamedTuple):
    """The launches of one direction at one size, and the scratch memory they share."""

    geometry: RowGeometry
    tier: str
    first: Launch
    second: Launch | None = None  # None if the first does it all
    table: int = 0  # elements of the table that programs publish in
    tickets: int = 0
    groups: int = 0  # programs that leave shares of dweight and dbias


@functools.lru_cache(PLANS)
def forward_plan(
    R: int,
    L: int,
    dtypes: tuple[torch.dtype | None, ...],
    spec: RowSpec,
    sms: int,
    shared: int,
    tier_state: tiers.State,
) -> RowPlan:
    """The forward for R rows of L elements; `dtypes` are those of a Forward."""
    itemsize, gated = itemsize_of(dtypes), spec.gate is not None
    t = Forward(*dtypes)
    room = forward_room(t, R, spec)
    tier, geometry = row_geometry.choose(R, L, itemsize, False, tier_state, room, gated)
    parameters = (t.weight, t.bias)
    own = parameters if spec.parameters(R) == "own" else ()
    whole_row = (t.x, t.addend, t.gate)
    if tier == "one_program":
        whole_row += (t.residual, *own)
    geometry = geometry.pipelined(_bytes(whole_row), shared)
    moments = 3 if spec.norm == "layer" else 1
    if tier == "one_program":
        geometry = geometry.for_parameters(spec)
        groups = min(geometry.units, sms * geometry.at_once)
        kernel = several_tiles_row_kernel if geometry.tiles > 1 else row_norm_kernel
        return RowPlan(geometry, tier, _launch(kernel, groups, 1, geometry, spec))
    wanted = triton.cdiv(tilings.ENOUGH_PROGRAMS, geometry.units)
    steps = triton.cdiv(geometry.members, min(wanted, geometry.members))
    parts = triton.cdiv(geometry.members, steps)
    anew = parameters if spec.parameters(R) != "shared" else ()
    loaded = _bytes((t.x, t.residual, t.gate, *anew))
    each = row_geometry.pointwise(R, L, itemsize).pipelined(loaded, shared).for_parameters(spec)
    runs = _runs(each, sms)
    aligned_L = L // alignment(L)
    return RowPlan(
        geometry,
        tier,
        first=Launch(
            row_moments_kernel,
            geometry.units * parts,
            (R, aligned_L, parts, steps),
            {"K": geometry.choices(spec.without_parameters())},
            geometry.num_warps,
        ),
        second=Launch(
            row_apply_kernel,
            runs * each.members,
            (R, aligned_L, each.units, runs, *each.parameter_scalars),
            {"K": each.choices(spec)},
            each.num_warps,
            each.registers,
        ),
        table=moments * R * parts,
        tickets=geometry.units,
    )


@functools.lru_cache(PLANS)
def backward_plan(
    R: int,
    L: int,
    dtypes: tuple[torch.dtype | None, ...],
    spec: RowSpec,
    shares: bool,
    sms: int,
    shared: int,
    tier_state: tiers.State,
) -> RowPlan:
    """The backward on a device with that many multiprocessors. `dtypes` are those of a Backward.
    `shares`: whether programs leave shares of the parameters' gradients."""
    itemsize, gated = itemsize_of(dtypes), spec.gate is not None
    t = Backward(*dtypes)
    both = shares and spec.sums_both(t)
    room = backward_room(t, spec, both)
    tier, geometry = row_geometry.choose(R, L, itemsize, True, tier_state, room, gated)
    if tier == "one_program" and is_exact(spec):
        geometry = geometry.kept_packed(both and spec.activation is not None)
    parameters = (t.weight, t.bias)
    own = parameters if spec.parameters(R) == "own" else ()
    whole_row = (t.x, t.dy, t.residual, t.gate, *own)
    if tier == "one_program":
        whole_row += (t.dsum,)
    geometry = geometry.pipelined(_bytes(whole_row), shared).for_parameters(spec)
    if tier == "one_program":
        groups = min(geometry.units, sms * geometry.at_once)
        launch = _launch(row_norm_backward_kernel, groups, 1, geometry, spec)
        return RowPlan(geometry, tier, launch, groups=groups if shares else 0)
    groups = min(geometry.units, max(sms // geometry.members, 1))
    anew = parameters if spec.parameters(R) != "shared" else ()
    loaded = _bytes((t.x, t.dy, t.residual, t.dsum, t.gate, *anew))
    each = row_geometry.pointwise(R, L, itemsize).pipelined(loaded, shared).for_parameters(spec)
    runs = _runs(each, sms)
    few = triton.next_power_of_2(geometry.members)
    K = each.choices(spec)._replace(FEW_PARTS=few if few <= MOST_OF_FEW_PARTS else 0)
    columns, at_a_time = SHARES_GROUPED if geometry.grouped else SHARES_BESIDE
    adders = geometry.parameter_rows * triton.cdiv(L, columns) if shares else 0
    scalars = (R, L // alignment(L), each.units, geometry.members, groups, *each.parameter_scalars)
    return RowPlan(
        geometry,
        tier,
        first=_launch(row_sums_kernel, groups, geometry.members, geometry, spec),
        second=Launch(
            row_dx_kernel,
            adders + runs * each.members,
            (*scalars, runs, geometry.units if geometry.grouped else None),
            {"K": K, "SHARES_L": columns, "SHARES_G": at_a_time},
            each.num_warps,
            each.registers,
        ),
        table=spec.planes * R * geometry.members,
        groups=groups,
    )


def _runs(geometry: RowGeometry, sms: int) -> int:
    """The runs of blocks of rows that programs take: as many as fit the GPU at once. If rows are so
    long that this would leave a part of it idle, programs for several waves."""
    at_once = sms * geometry.at_once
    runs = at_once // geometry.members
    if runs * geometry.members < FULL_WAVE * at_once:
        runs = triton.cdiv(MANY_WAVES * at_once, geometry.members)
    return min(runs, geometry.units)


def _bytes(dtypes: tuple[torch.dtype | None, ...]) -> int:
    """Bytes that a turn loads for each element of x, from tensors of these dtypes."""
    return sum(dtype.itemsize for dtype in dtypes if dtype is not None)


def _launch(kernel: Any, groups: int, members: int, geometry: RowGeometry, spec: RowSpec) -> Launch:
    """Groups of `members` programs, which take blocks of rows in turns."""
    return Launch(
        kernel,
        groups * members,
        geometry.scalars(groups),
        {"K": geometry.choices(spec)},
        geometry.num_warps,
        geometry.registers,
    )


@functools.lru_cache(PLANS)
def sum_launch(
    L: int,
    groups: int,
    grouped: tuple[int, int] | None,
    _dtypes: tuple[torch.dtype | None, ...],
) -> Launch:
    """The programs that add up, for each parameter row, the shares of that many groups. `grouped`:
    the number of blocks of rows, and of parameter rows."""
    align = alignment(L)
    shares = SHARES_SHORT if L <= SHORT_ROW else SHARES_LONG
    columns, at_a_time = SHARES_GROUPED if grouped else shares
    row_blocks, A = grouped or (None, None)
    return Launch(
        add_shares_kernel,
        (A or 1) * triton.cdiv(L, columns),
        (groups, L // align, row_blocks, A),
        {"ALIGN": align, "BLOCK_L": columns, "BLOCK_G": at_a_time},
        4,
    )
