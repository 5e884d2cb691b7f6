"""The launches of a norm of (N, C, S) at one size: which kernels, their geometry, their scratch."""

import functools
from typing import Any, NamedTuple

import torch

from . import geometry as geometries
from . import tiers
from .clusters import ClusterLaunch
from .geometry import Geometry, Sets, View, pointwise, view_of
from .launch import Launch
from .resident import resident_kernel
from .resident_backward import resident_backward_kernel
from .streaming import apply_kernel, moments_kernel
from .streaming_backward import apply_backward_kernel, gradient_sums_kernel

PLANS = 1024  # sizes whose launches are remembered
STATS_PLANES = 3  # what a forward keeps of each set: merge.stat_planes
SUMS_PLANES = 2  # and what a backward's first pass adds up: merge.sum_planes
OVER_BATCH = ("batch", "mean_only_batch")  # their sets run over the batch


class Norm(NamedTuple):
    """A norm of (N, C, S) tensors, apart from its tensors and numbers."""

    # batch, instance, batch_instance, mean_only_batch, group; given: merged outside of the kernels
    norm: str
    groups: int
    use_input_stats: bool
    activation: str | None

    def sets(self, channels: int) -> Sets:
        """What its statistics are taken over."""
        depth = channels // self.groups if self.norm == "group" else 1
        mix = self.norm == "batch_instance"
        over_batch = self.norm in OVER_BATCH or (mix and self.use_input_stats)
        return Sets(depth, over_batch, mix)

    def constants(self) -> dict[str, Any]:
        return {
            "ACTIVATION": self.activation,
            "TRAINING": self.use_input_stats,
            "GIVEN": self.norm == "given",
            "VARIANCE": self.norm != "mean_only_batch",
        }


class Plan(NamedTuple):
    """The launches of one direction of a norm at one size, and the scratch memory they share."""

    view: View
    tier: str
    first: Launch | ClusterLaunch | None  # None where the statistics are constants
    second: Launch | None  # None where the first does it all
    stats: int  # elements of the kept statistics
    sums: int  # elements of the backward's sums over sets
    table: int  # elements of the table that programs publish in, 0 for none
    tickets: int
    bits: int  # bytes of ReLU's mask
    dresidual: bool  # the residual's gradient is not dy itself


@functools.lru_cache(PLANS)
def forward_plan(
    shape: torch.Size,
    contiguous: bool,
    dtypes: tuple[torch.dtype | None, ...],
    norm: Norm,
    running: bool,
    tier_state: tiers.State,
) -> Plan:
    """The forward of `norm` for an x of this shape and layout.

    `dtypes` are those of the call's tensors: a launch is made for one pattern of them.
    """
    assert dtypes[0] is not None
    plan, sets = _sizes(shape, contiguous, dtypes[0].itemsize, norm)
    view = plan.view
    constants = {**norm.constants(), "BATCH": sets.batch, "MIX": sets.mix}
    has_residual, each = dtypes[1] is not None, pointwise(view, sets)
    registers = each.pointwise_registers(has_residual)
    apply = _launch(apply_kernel, each, constants, registers)
    if norm.norm == "given" or (sets.batch and not norm.use_input_stats):
        return plan._replace(second=apply)
    tier, geometry = tiers.choose(view, sets, has_residual, tier_state)
    averages = running and not sets.batch and norm.use_input_stats
    if tier == "streaming":
        constants["BATCH"] = geometry.sets.batch
        first = _launch(moments_kernel, geometry, constants, geometry.reducing_registers)
        apply = _launch(apply_kernel, each, constants, registers)
        return plan._replace(
            tier=tier, first=first, second=apply, table=_table(geometry, 3),
            tickets=geometry.units + geometry.u_blocks,
        )  # fmt: skip
    return plan._replace(
        tier=tier,
        first=_resident(resident_kernel, tier, geometry, constants),
        table=_table(geometry, 3) if tier == "cluster" or averages else 0,
        tickets=geometry.u_blocks if averages else 0,
    )


@functools.lru_cache(PLANS)
def backward_plan(
    shape: torch.Size,
    contiguous: bool,
    dtypes: tuple[torch.dtype | None, ...],
    norm: Norm,
    needs: tuple[bool, bool, bool, bool, bool],
    tier_state: tiers.State,
) -> Plan:
    """The backward of `norm` for an x of this shape and layout; see forward_plan."""
    assert dtypes[0] is not None
    plan, sets = _sizes(shape, contiguous, dtypes[0].itemsize, norm)
    view = plan.view
    needs_dx, needs_dresidual = needs[0], needs[1] and norm.activation is not None
    plan = plan._replace(dresidual=needs_dresidual)
    constants = {**norm.constants(), "BATCH": sets.batch, "MIX": sets.mix}
    parameters = any(needs[2:])
    slopes = needs_dx and (norm.use_input_stats or sets.mix)
    has_side = dtypes[2] is not None or dtypes[3] is not None
    tier, geometry = tiers.choose(view, sets, has_side, tier_state)
    if slopes and tier != "streaming" and norm.norm != "given":
        gathers = parameters and not sets.batch
        return plan._replace(
            tier=tier,
            first=_resident(resident_backward_kernel, tier, geometry, constants),
            table=_table(geometry, 4 if sets.batch and sets.mix else 2)
            if tier == "cluster" or gathers
            else 0,
            tickets=geometry.u_blocks if gathers else 0,
        )
    geometry = geometries.streaming(view, sets)
    constants["BATCH"] = geometry.sets.batch
    first = second = None
    if slopes or parameters:
        mixes = sets.mix and norm.use_input_stats and slopes
        over_instances = not geometry.sets.batch and (parameters or mixes)
        sums_constants = {**constants, "OVER_INSTANCES": over_instances}
        first = _launch(gradient_sums_kernel, geometry, sums_constants, geometry.reducing_registers)
    if needs_dx or needs_dresidual:
        each = pointwise(view, sets)
        registers = each.pointwise_registers(has_side)
        second = _launch(apply_backward_kernel, each, constants, registers)
    return plan._replace(
        first=first,
        second=second,
        sums=plan.sums if slopes else 0,
        table=_table(geometry, 2) if first else 0,
        tickets=geometry.units + geometry.u_blocks if first else 0,
    )


def kept_sizes(shape: torch.Size, contiguous: bool, norm: Norm) -> tuple[int, int]:
    """Elements of the statistics that a forward keeps, and bytes of ReLU's mask."""
    sets = norm.sets(shape[1])
    N, C, S, channels_last, _ = view_of(shape, contiguous, 0, False)
    over_batch = C if sets.batch and not sets.mix else N * (C // sets.depth)
    bits = N * S * -(-C // 8) if channels_last else N * C * -(-S // 8)
    return STATS_PLANES * (over_batch + (C if sets.mix else 0)), bits


def _sizes(shape: torch.Size, contiguous: bool, itemsize: int, norm: Norm) -> tuple[Plan, Sets]:
    """A plan without launches, and the sets it is for."""
    sets = norm.sets(shape[1])
    view = view_of(shape, contiguous, itemsize, sets.batch and not sets.mix)
    stats, bits = kept_sizes(shape, contiguous, norm)
    plan = Plan(
        view,
        tier="streaming",
        first=None,
        second=None,
        stats=stats,
        sums=SUMS_PLANES * stats // STATS_PLANES,
        table=0,
        tickets=0,
        bits=bits,
        dresidual=False,
    )
    return plan, sets


def _table(geometry: Geometry, planes: int) -> int:
    outer = 1 if geometry.sets.batch else geometry.view.N
    return planes * outer * geometry.pieces * geometry.view.C


def _launch(
    kernel: Any, geometry: Geometry, constants: dict[str, Any], maxnreg: int | None = None
) -> Launch:
    return Launch(
        kernel,
        geometry.units * geometry.members,
        geometry.scalars(geometry.units),
        {**constants, **geometry.constants()},
        geometry.num_warps,
        maxnreg,
    )


def _resident(
    kernel: Any, tier: str, geometry: Geometry, constants: dict[str, Any]
) -> Launch | ClusterLaunch:
    if tier == "cluster":
        return ClusterLaunch(kernel, geometry, constants)
    constants = {**constants, "CLUSTER": False, "HALF": 0}
    return _launch(kernel, geometry, constants, geometry.resident_registers)
