"""Statistics of sets, kept ones for the backward, and the coefficients that follow from them. The
kept statistics are planes of one allocation, one element for each set.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .arithmetic import accumulation_type, inverse_std, load_or, split_mean, update_running
from .channel_lanes import parameter_slot, unit_channels
from .channel_moments import batch_moments


class Stats(NamedTuple):
    """The mean is center + offset; offset is a remainder below center's digits."""

    center: Any
    offset: Any
    rstd: Any


class Running(NamedTuple):
    mean: Any
    var: Any


class Affine(NamedTuple):
    """y = (x - center) * scale + shift: centred first, so it is exact if mean >> std."""

    center: Any
    scale: Any
    shift: Any


# --- kept statistics ---


@triton.jit
def kept_plane(s, K: tl.constexpr):
    """The number of sets: the elements in a plane of their statistics or sums."""
    if K.STATS_OF_BATCH:
        return s.C.to(tl.int64)
    elif K.SETS == 0:
        return s.N.to(tl.int64) * s.C
    else:
        return s.N.to(tl.int64) * (s.C // s.D)


@triton.jit
def kept_slot(n, c, s, K: tl.constexpr):
    """The index, in a plane, of the set of (n, c)."""
    if K.STATS_OF_BATCH:
        return c.to(tl.int64)
    elif K.SETS == 0:
        return n * s.C + c
    else:
        return n * (s.C // s.D) + c // s.D


@triton.jit
def load_planes(ptr, plane, slot, mask):
    return Stats(
        tl.load(ptr + slot, mask=mask, other=0.0),
        tl.load(ptr + plane + slot, mask=mask, other=0.0),
        tl.load(ptr + 2 * plane + slot, mask=mask, other=0.0),
    )


@triton.jit
def store_planes(ptr, plane, slot, mask, stats):
    tl.store(ptr + slot, stats.center, mask=mask)
    tl.store(ptr + plane + slot, stats.offset, mask=mask)
    tl.store(ptr + 2 * plane + slot, stats.rstd, mask=mask)


@triton.jit
def load_stats(t, n, c, mask, s, K: tl.constexpr):
    """The statistics of the set of each (n, c)."""
    return load_planes(t.stats, kept_plane(s, K), kept_slot(n, c, s, K), mask)


@triton.jit
def store_stats(t, n, c, mask, stats, s, K: tl.constexpr):
    store_planes(t.stats, kept_plane(s, K), kept_slot(n, c, s, K), mask, stats)


@triton.jit
def load_batch_stats(t, c, mask, s, K: tl.constexpr):
    """The statistics of a mixture's batch, which lie behind the instances'."""
    return load_planes(t.stats + 3 * kept_plane(s, K), s.C, c, mask)


@triton.jit
def store_batch_stats(t, c, mask, stats, s, K: tl.constexpr):
    store_planes(t.stats + 3 * kept_plane(s, K), s.C, c, mask, stats)


@triton.jit
def constant_stats(t, c, mask, eps):
    """The batch's statistics in eval mode; a norm without variances has no running variances."""
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    center = tl.load(t.running_mean + c, mask=mask, other=0.0).to(ACC)
    zero = tl.zeros_like(center)
    if t.running_var is None:
        return Stats(center, zero, zero + 1.0)
    else:
        var = tl.load(t.running_var + c, mask=mask, other=1.0).to(ACC)
        return Stats(center, zero, inverse_std(var, eps))


# --- statistics and coefficients ---


@triton.jit
def stats_of(pivot, m, eps, K: tl.constexpr):
    center, offset = split_mean(pivot, m.mean)
    if K.VARIANCE:
        return Stats(center, offset, inverse_std(m.m2 / tl.maximum(m.count, 1.0), eps))
    else:
        return Stats(center, offset, tl.full(center.shape, 1.0, center.dtype))


@triton.jit
def load_running(t, c, mask):
    """Running statistics before the update, in the accumulation type."""
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    mean = load_or(t.running_mean, c, mask, 0.0, ACC)
    return Running(mean, load_or(t.running_var, c, mask, 0.0, ACC))


@triton.jit
def update_batch(t, old, m, center, c, mask, momentum):
    """Running statistics of sets that run over the batch; variances unbiased."""
    unbiased = m.m2 / tl.maximum(m.count - 1.0, 1.0)
    update_running(t.running_mean, c, mask, old.mean, center, momentum)
    update_running(t.running_var, c, mask, old.var, unbiased, momentum)


@triton.jit
def average_instances(t, u, momentum, s, K: tl.constexpr):
    """Running statistics of instance norm: the averages over instances of their means and of their
    unbiased variances."""
    channels = unit_channels(u, 0, s, K)
    c, mask = channels.c, channels.mask
    old = load_running(t, c, mask)
    pivot, m, within = batch_moments(t, u, s, K)
    unbiased = within / tl.maximum(m.count - s.N, 1.0)
    update_running(t.running_mean, c, mask, old.mean, pivot + m.mean, momentum)
    update_running(t.running_var, c, mask, old.var, unbiased, momentum)


@triton.jit
def affine_of(t, stats, n, c, mask, s, K: tl.constexpr):
    slot = parameter_slot(n, c, s, K)
    gamma = load_or(t.weight, slot, mask, 1.0, stats.rstd.dtype)
    beta = load_or(t.bias, slot, mask, 0.0, stats.rstd.dtype)
    scale = gamma * stats.rstd
    return Affine(stats.center, scale, beta - scale * stats.offset)


@triton.jit
def mixed_affine(t, stats, batch, n, c, mask, s, K: tl.constexpr):
    """rho times the batch's x_hat plus 1 - rho times the instance's (arXiv 1805.07925)."""
    slot = parameter_slot(n, c, s, K)
    gamma = load_or(t.weight, slot, mask, 1.0, stats.rstd.dtype)
    beta = load_or(t.bias, slot, mask, 0.0, stats.rstd.dtype)
    rho = load_or(t.rho, c, mask, 0.0, stats.rstd.dtype)
    scale = gamma * (1.0 - rho) * stats.rstd
    batch_scale = gamma * rho * batch.rstd
    shift = beta - scale * stats.offset
    shift -= batch_scale * ((batch.center - stats.center) + batch.offset)
    return Affine(stats.center, scale + batch_scale, shift)


@triton.jit
def kept_affine(t, lanes, s, K: tl.constexpr):
    """Coefficients of each lane, from the kept statistics and the parameters. If GIVEN, the
    coefficients themselves were kept."""
    stats = load_stats(t, lanes.n, lanes.c, lanes.mask, s, K)
    if K.GIVEN:
        return Affine(stats.center, stats.offset, stats.rstd)
    elif K.MIX:
        batch = load_batch_stats(t, lanes.c, lanes.mask, s, K)
        return mixed_affine(t, stats, batch, lanes.n, lanes.c, lanes.mask, s, K)
    else:
        return affine_of(t, stats, lanes.n, lanes.c, lanes.mask, s, K)
