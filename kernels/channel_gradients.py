"""Stage two of the backward: sums of g = dy * act', merged over sets and over instances, and the
gradients computed from them.

With m the mean and rstd the inverse deviation of a set of `count` elements, and g times gamma,

    dx = scale g + q (x - center) + r,
    q = -(rstd / count) rstd^2 sum g (x - m),    r = -(rstd / count) sum g + q (center - m).

The table has planes of (sum g, sum g (x - center)) of parts.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .arithmetic import load_or, product, store_gradient, sum_both
from .channel_lanes import in_sets, parameter_slot
from .channel_moments import sum_set, table_plane
from .channel_stats import kept_plane, kept_slot
from .tables import part_pairs


class Sums(NamedTuple):
    g: Any
    gx: Any  # of g (x - center) or g (x - mean)


class Slopes(NamedTuple):
    """The coefficients of dx = scale g + q (x - center) + r that follow from the sums."""

    q: Any
    r: Any


@triton.jit
def slopes_of(stats, sums, count, K: tl.constexpr):
    """Slopes from weighted sums of g and g (x - mean).

    Without VARIANCE rstd is the constant 1, and dx = g - sum g / count.
    """
    share = stats.rstd / count
    if not K.VARIANCE:
        return Slopes(tl.zeros_like(sums.g), -share * sums.g)
    q = -share * stats.rstd * (stats.rstd * sums.gx)  # so r^3 never underflows on its own
    return Slopes(q, -share * sums.g - q * stats.offset)


@triton.jit
def about_mean(sums, stats):
    """Sums of g (x - center) turned into sums of g (x - mean)."""
    return Sums(sums.g, sums.gx - stats.offset * sums.g)


@triton.jit
def weighted(weight, sums):
    return Sums(product(weight, sums.g), product(weight, sums.gx))


@triton.jit
def instance_weight(t, n, c, mask, s, K: tl.constexpr, ACC: tl.constexpr):
    """The weight of g in the gradient of the statistics: gamma, or a mixture's share of it."""
    gamma = load_or(t.weight, parameter_slot(n, c, s, K), mask, 1.0, ACC)
    if K.MIX:
        gamma *= 1.0 - load_or(t.rho, c, mask, 0.0, ACC)
    return gamma


@triton.jit
def set_sums(t, sums, n, channels, s, K: tl.constexpr):
    """Weighted sums over the set of each channel, from each channel's own sums."""
    weight = instance_weight(t, n, channels.c, channels.mask, s, K, sums.g.dtype)
    sums = weighted(weight, sums)
    local = channels.local
    return Sums(sum_set(sums.g, local, s, K), sum_set(sums.gx, local, s, K))


@triton.jit
def sums_of_sets(sums, local, s, K: tl.constexpr):
    """Sums over each set of a unit, from those of its channels: one for each channel if that is a
    set (SETS = 0)."""
    if K.SETS == 0:
        return sums
    elif K.SETS == 1:
        g, gx = sum_both(sums.g, sums.gx, 0)
        zero = tl.full([1], 0, g.dtype)
        return Sums(zero + g, zero + gx)
    else:
        belongs = in_sets(local, s, K)
        g = tl.where(belongs, sums.g[:, None], 0.0)
        g, gx = sum_both(g, tl.where(belongs, sums.gx[:, None], 0.0), 0)
        return Sums(g, gx)


# --- results that the programs of a unit leave for one another ---


@triton.jit
def published_sums(t, n, channels, s, K: tl.constexpr):
    """Each channel's sums over the parts of a unit, in order."""
    BLOCK: tl.constexpr = channels.c.shape[0]
    gx = t.table + table_plane(s, K)
    g, gx = part_pairs(t.table, gx, n, channels.c, channels.mask, s.C, s.parts, BLOCK)
    return Sums(g, gx)


# --- sums over sets, between two launches ---


@triton.jit
def store_sums(t, n, c, mask, sums, s, K: tl.constexpr):
    if t.sums is not None:
        slot = kept_slot(n, c, s, K)
        tl.store(t.sums + slot, sums.g, mask=mask)
        tl.store(t.sums + kept_plane(s, K) + slot, sums.gx, mask=mask)


@triton.jit
def load_sums(t, n, c, mask, s, K: tl.constexpr):
    slot = kept_slot(n, c, s, K)
    g = tl.load(t.sums + slot, mask=mask, other=0.0)
    return Sums(g, tl.load(t.sums + kept_plane(s, K) + slot, mask=mask, other=0.0))


# --- the batch ---


@triton.jit
def store_batch_gradients(t, sums, stats, c, mask):
    """dgamma and dbeta of sets over the batch, from sums of g and g (x - mean)."""
    store_gradient(t.dweight, c, mask, stats.rstd * sums.gx)
    store_gradient(t.dbias, c, mask, sums.g)
