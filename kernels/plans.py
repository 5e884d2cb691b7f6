"""The launches of a norm of (N, C, S) at one size: which kernels, their geometry, their scratch."""

import functools
from typing import Any, NamedTuple

import torch

from fastnorm.activations import parsed
from fastnorm.contract import NormSpec

from . import tiers, tilings
from .channel_types import Choices
from .channels_cluster import cluster_backward_kernel, cluster_kernel
from .channels_one_launch import resident_backward_kernel, resident_kernel
from .channels_several_tiles import several_tiles_backward_kernel, several_tiles_kernel
from .channels_two_launches import (
    apply_backward_kernel,
    apply_kernel,
    gradient_sums_kernel,
    moments_kernel,
)
from .clusters import ClusterLaunch
from .geometry import Geometry, Sets, View, view_of
from .launch import PLANS, Launch

STATS_PLANES = 3  # a forward keeps these for each set: channel_stats.load_stats
SUMS_PLANES = 2  # a backward's first pass adds these up: channel_gradients.load_sums
OVER_BATCH = ("batch", "mean_only_batch")  # their sets run over the batch


def planned(spec: NormSpec) -> NormSpec:
    """The spec without its numbers: plans do not depend on them."""
    return NormSpec(spec.norm, spec.groups, spec.use_input_stats, 0.0, 0.0, spec.activation)


def sets_of(spec: NormSpec, channels: int) -> Sets:
    """The sets of values over which a norm of (N, C, S) takes statistics."""
    depth = max(channels // spec.groups, 1) if spec.norm == "group" else 1
    mix = spec.norm == "batch_instance"
    over_batch = spec.norm in OVER_BATCH or (mix and spec.use_input_stats)
    return Sets(depth, over_batch, mix)


def choices(spec: NormSpec, geometry: Geometry, batch: bool) -> Choices:
    """Compile-time constants of kernels; BATCH if the sets that a launch merges run over the
    batch."""
    name, parameter = parsed(spec.activation)
    return Choices(
        BATCH=batch,
        STATS_OF_BATCH=spec.norm in OVER_BATCH,
        MIX=geometry.sets.mix,
        VARIANCE=spec.norm != "mean_only_batch",
        OF_SAMPLES=geometry.sets.samples,
        GIVEN=spec.norm == "given",
        TRAINING=spec.use_input_stats,
        ACTIVATION=name or None,
        PARAMETER=parameter,
        **geometry.constants(),
    )


class Plan(NamedTuple):
    """The launches of one direction of a norm at one size, and the scratch memory they share."""

    tier: str
    first: Launch | ClusterLaunch | None  # None if the statistics are constants
    second: Launch | None  # None if the first does it all
    stats: int  # elements of the kept statistics
    sums: int  # elements of the backward's sums over sets, 0 if no second launch needs them
    table: int  # elements of the table that programs publish in, 0 for none
    tickets: int
    dresidual: bool  # the residual's gradient is not dy itself


@functools.lru_cache(PLANS)
def forward_plan(
    shape: torch.Size,
    contiguous: bool,
    dtypes: tuple[torch.dtype | None, ...],
    masked: bool,
    spec: NormSpec,
    of_samples: bool,
    running: bool,
    tier_state: tiers.State,
) -> Plan:
    """The forward of a norm for an x of this shape and layout, `of_samples` with parameters (N, C).

    `dtypes` are those of a Forward's inputs: a launch serves one pattern of them, and one pattern
    of outputs, with ReLU's bits if `masked`.
    """
    assert dtypes[0] is not None
    plan, view, sets = _sizes(shape, contiguous, dtypes[0].itemsize, spec, of_samples)
    has_residual = dtypes[1] is not None
    constant_statistics = spec.norm == "given" or (sets.batch and not spec.use_input_stats)
    if not constant_statistics:
        averages = running and not sets.batch and spec.use_input_stats
        tier, geometry = tilings.choose(view, sets, has_residual, False, tier_state, averages)
        if tier != "streaming":
            return plan._replace(
                tier=tier,
                first=_in_one_launch(tier, geometry, spec, False),
                table=_exchanged(tier, geometry, 3, averages),
                tickets=geometry.u_blocks if averages else 0,
            )
        if sets.depth > 1 and not view.channels_last:  # a set is one run of memory
            geometry = tilings.streaming(view.regrouped(sets.depth), Sets(1, False, False), False)
        elif of_samples:  # moments take no parameters
            _, merged, alike = _sizes(shape, contiguous, dtypes[0].itemsize, spec, False)
            geometry = tilings.streaming(merged, alike, False)
        plan = plan._replace(
            first=_moments(geometry, spec, sets.of_batch),
            table=_table(geometry, 3),
            tickets=geometry.units + geometry.u_blocks,
        )
    each = tilings.pointwise(view, sets, False, masked)
    limit = each.pointwise_registers(has_residual, False)
    return plan._replace(second=_launch(apply_kernel, each, spec, sets.of_batch, limit))


@functools.lru_cache(PLANS)
def backward_plan(
    shape: torch.Size,
    contiguous: bool,
    dtypes: tuple[torch.dtype | None, ...],
    spec: NormSpec,
    of_samples: bool,
    needs: tuple[bool, bool, bool, bool, bool],
    tier_state: tiers.State,
) -> Plan:
    """The backward of a norm for an x of this shape and layout; see forward_plan."""
    assert dtypes[0] is not None
    plan, view, sets = _sizes(shape, contiguous, dtypes[0].itemsize, spec, of_samples)
    needs_dx, needs_dresidual = needs[0], needs[1] and spec.activation is not None
    plan = plan._replace(dresidual=needs_dresidual)
    parameters = any(needs[2:])
    slopes = needs_dx and (spec.use_input_stats or sets.mix)
    masked = dtypes[3] is not None
    has_side = masked or dtypes[2] is not None
    tier, geometry = tilings.choose(view, sets, has_side, True, tier_state)
    # Parameters of samples need no sums over instances; rho, which samples share, does.
    gathered = needs[4] if of_samples else parameters
    if slopes and tier != "streaming" and spec.norm != "given":
        gathers = gathered and not sets.batch
        return plan._replace(
            tier=tier,
            first=_in_one_launch(tier, geometry, spec, True, gathers),
            sums=0,  # they are for a second launch
            table=_exchanged(tier, geometry, 2, gathers) + gathers * _instances(geometry),
            tickets=geometry.u_blocks if gathers else 0,
        )
    geometry = tilings.streaming(view, sets, True, masked)
    if slopes or parameters:
        mixes = (sets.mix or sets.samples) and sets.batch and slopes
        gathers = not sets.one_instance and (gathered or mixes)
        registers = geometry.reducing_registers(True)
        batch = sets.one_instance
        plan = plan._replace(
            first=_launch(gradient_sums_kernel, geometry, spec, batch, registers, gathers),
            table=_table(geometry, 2) + gathers * _instances(geometry),
            tickets=geometry.units + geometry.u_blocks,
        )
    if needs_dx or needs_dresidual:
        each = tilings.pointwise(view, sets, True, masked)
        limit = each.pointwise_registers(has_side, True)
        apply = _launch(apply_backward_kernel, each, spec, sets.of_batch, limit)
        plan = plan._replace(second=apply)
    return plan._replace(sums=plan.sums if slopes else 0)


def stats_size(N: int, C: int, spec: NormSpec) -> int:
    """Elements of the statistics that a forward keeps; sizes may be symbolic."""
    sets = sets_of(spec, C)
    kept = C if sets.of_batch else N * (C // sets.depth)
    return STATS_PLANES * (kept + (C if sets.mix else 0))


def _sizes(
    shape: torch.Size, contiguous: bool, itemsize: int, spec: NormSpec, of_samples: bool
) -> tuple[Plan, View, Sets]:
    """A plan without launches, its view of the tensor and the sets in it."""
    sets = sets_of(spec, shape[1])._replace(samples=of_samples)
    view = view_of(shape, contiguous, itemsize, sets.one_instance)
    stats = stats_size(shape[0], shape[1], spec)
    plan = Plan(
        tier="streaming",
        first=None,
        second=None,
        stats=stats,
        sums=SUMS_PLANES * stats // STATS_PLANES,
        table=0,
        tickets=0,
        dresidual=False,
    )
    return plan, view, sets


def _table(geometry: Geometry, planes: int) -> int:
    outer = 1 if geometry.sets.batch else geometry.view.N
    return planes * outer * geometry.parts * geometry.view.C


def _exchanged(tier: str, geometry: Geometry, planes: int, gathers: bool) -> int:
    """Elements that programs of one launch leave for one another: each member of a cluster or, if
    something is summed over instances, each instance."""
    if tier == "cluster":
        return planes * geometry.units * geometry.members
    return gathers * _table(geometry, planes)


def _instances(geometry: Geometry) -> int:
    """Elements that instances leave, behind the table, for the sums over instances; in a cluster
    each part of an instance."""
    parts = geometry.parts if geometry.several else 1
    return 2 * geometry.view.N * geometry.view.C * parts


def _moments(geometry: Geometry, spec: NormSpec, batch: bool) -> Launch:
    K = choices(spec, geometry, batch)._replace(ACTIVATION=None, STAGES=tilings.MOMENTS_STAGES)
    return Launch(
        moments_kernel,
        geometry.units * geometry.members,
        geometry.scalars(),
        {"K": K},
        geometry.num_warps,
        geometry.reducing_registers(False),
    )


def _launch(
    kernel: Any,
    geometry: Geometry,
    spec: NormSpec,
    batch: bool,
    maxnreg: int | None,
    gathers: bool = False,
) -> Launch:
    K = choices(spec, geometry, batch)._replace(GATHERS=gathers)
    return Launch(
        kernel,
        geometry.units * geometry.members,
        geometry.scalars(),
        {"K": K},
        geometry.num_warps,
        maxnreg,
    )


# Kernels of one launch, (forward, backward).
CLUSTER = (cluster_kernel, cluster_backward_kernel)
SEVERAL_TILES = (several_tiles_kernel, several_tiles_backward_kernel)
ONE_TILE = (resident_kernel, resident_backward_kernel)


def _in_one_launch(
    tier: str, geometry: Geometry, spec: NormSpec, backward: bool, gathers: bool = False
) -> Launch | ClusterLaunch:
    batch = geometry.sets.batch
    if tier == "cluster":
        K = choices(spec, geometry, batch)._replace(CLUSTER=True, GATHERS=gathers)
        return ClusterLaunch(CLUSTER[backward], geometry, K)
    kernel = (SEVERAL_TILES if geometry.several else ONE_TILE)[backward]
    registers = geometry.resident_registers(backward)
    return _launch(kernel, geometry, spec, batch, registers, gathers)
