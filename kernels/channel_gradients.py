"""Stage two of the backward: sums of g = dy * act', merged over sets and over instances, and the
gradients computed from them.

With m the mean and rstd the inverse deviation of a set of `count` elements, and g times gamma,

    dx = scale g + q (x - center) + r,
    q = -(rstd / count) rstd^2 sum g (x - m),    r = -(rstd / count) sum g + q (center - m).

The table has planes of (sum g, sum g (x - center)) of parts; for a mixture in one launch, two more.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .arithmetic import load_or, product, store_gradient, sum_both
from .channel_moments import sum_set, table_plane
from .channel_stats import Stats, kept_plane, kept_slot, load_batch_stats, load_stats
from .channel_tiles import block_of_channels, is_first, merged_at_once, parameter_slot
from .tables import part_pairs, part_sums, table_rows


class Sums(NamedTuple):
    g: Any
    gx: Any  # of g (x - center) or g (x - mean)


class MixedSums(NamedTuple):
    """A mixture's sums; m_b and rstd_b are the batch's, m_i and rstd_i an instance's."""

    g: Any
    gx: Any  # g (x - m_b)
    hat: Any  # rstd_i g (x - m_i)
    gap: Any  # rstd_b g (x - m_b) - rstd_i g (x - m_i): the two nearly cancel


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
def weighted_mixed(weight, sums):
    return MixedSums(
        product(weight, sums.g),
        product(weight, sums.gx),
        product(weight, sums.hat),
        product(weight, sums.gap),
    )


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


# --- results that the programs of a unit leave for one another ---


@triton.jit
def published_sum(t, plane: tl.constexpr, n, channels, s, K: tl.constexpr):
    """Each channel's sum over the parts of a unit, in order."""
    BLOCK_C: tl.constexpr = K.BLOCK_C
    table = t.table + plane * table_plane(s, K)
    return part_sums(table, n, channels.c, channels.mask, s.C, s.parts, BLOCK_C)


@triton.jit
def published_sums(t, n, channels, s, K: tl.constexpr):
    """The sums of the first two planes, in one go."""
    BLOCK: tl.constexpr = channels.c.shape[0]
    gx = t.table + table_plane(s, K)
    g, gx = part_pairs(t.table, gx, n, channels.c, channels.mask, s.C, s.parts, BLOCK)
    return Sums(g, gx)


@triton.jit
def unit_sums(t, at, index, s, K: tl.constexpr):
    """Weighted sums of g and g (x - center) over the set of each channel of a unit. The member
    with index 0 also leaves the channels' own sums for add_instances."""
    zero = tl.full([K.BLOCK_C], 0, t.table.dtype.element_ty)
    total = Sums(zero, zero)
    BLOCK: tl.constexpr = merged_at_once(K.BLOCK_C, K.SETS)
    for block in range(tl.cdiv(s.W, BLOCK)):
        channels = block_of_channels(at.u, block, BLOCK, s)
        own = published_sums(t, at.n, channels, s, K)
        first = channels.mask & is_first(index, channels.c)
        stats = load_stats(t, at.n, channels.c, channels.mask, s, K)
        leave_instance(t, own, stats, at.n, channels, first, s, K)
        if K.SETS == 1:
            weight = instance_weight(t, at.n, channels.c, channels.mask, s, K, own.g.dtype)
            own = weighted(weight, own)
            g, gx = sum_both(own.g, own.gx, 0)
            total = Sums(total.g + g, total.gx + gx)
        else:
            sums = set_sums(t, own, at.n, channels, s, K)
            total = Sums(total.g + sums.g, total.gx + sums.gx)
    return total


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


@triton.jit
def store_batch_sums(t, c, mask, sums, s, K: tl.constexpr):
    """A mixture's sums over the batch, behind the instances'; weighted only if OF_SAMPLES."""
    if t.sums is not None:
        batch = t.sums + 2 * kept_plane(s, K)
        tl.store(batch + c, sums.g, mask=mask)
        tl.store(batch + s.C + c, sums.gx, mask=mask)


@triton.jit
def load_batch_sums(t, c, mask, s, K: tl.constexpr):
    batch = t.sums + 2 * kept_plane(s, K)
    g = tl.load(batch + c, mask=mask, other=0.0)
    return Sums(g, tl.load(batch + s.C + c, mask=mask, other=0.0))


# --- the batch ---


@triton.jit
def store_batch_gradients(t, sums, stats, c, mask):
    """dgamma and dbeta of sets over the batch, from sums of g and g (x - mean)."""
    store_gradient(t.dweight, c, mask, stats.rstd * sums.gx)
    store_gradient(t.dbias, c, mask, sums.g)


@triton.jit
def mixed_sums(sums, stats, batch):
    """An instance's contribution to the mixture's sums."""
    to_batch = (batch.center - stats.center) + batch.offset
    level_gap = batch.rstd * to_batch - stats.rstd * stats.offset
    hat = product(stats.rstd, sums.gx - stats.offset * sums.g)
    gap = (batch.rstd - stats.rstd) * sums.gx - level_gap * sums.g
    return MixedSums(sums.g, sums.gx - to_batch * sums.g, hat, gap)


@triton.jit
def mixed_hat(sums, batch, rho):
    """Sums of g x_hat of the mixture."""
    return rho * (batch.rstd * sums.gx) + (1.0 - rho) * sums.hat


@triton.jit
def mixed_batch_slopes(t, sums, center, lanes, s, K: tl.constexpr):
    """The slopes that the mixture's batch statistics add for an instance's center, from the batch's
    sums of g and g (x - m_b)."""
    if not K.OF_SAMPLES:  # with OF_SAMPLES the sums were weighted before they were added
        gamma = load_or(t.weight, lanes.c, lanes.mask, 1.0, center.dtype)
    rho = load_or(t.rho, lanes.c, lanes.mask, 0.0, center.dtype)
    batch = load_batch_stats(t, lanes.c, lanes.mask, s, K)
    batch = Stats(batch.center, (batch.center - center) + batch.offset, batch.rstd)
    share = rho if K.OF_SAMPLES else gamma * rho
    sums = Sums(share * sums.g, share * sums.gx)
    return slopes_of(batch, sums, s.N.to(center.dtype) * s.S, K)


@triton.jit
def store_mixed_gradients(t, sums, c, mask, s, K: tl.constexpr):
    """dgamma, dbeta and drho of the mixture from its sums over the batch. OF_SAMPLES: only drho,
    from weighted sums."""
    if K.OF_SAMPLES:
        store_gradient(t.drho, c, mask, sums.gap)
    else:
        batch = load_batch_stats(t, c, mask, s, K)
        rho = load_or(t.rho, c, mask, 0.0, sums.g.dtype)
        gamma = load_or(t.weight, c, mask, 1.0, sums.g.dtype)
        store_gradient(t.dweight, c, mask, mixed_hat(sums, batch, rho))
        store_gradient(t.drho, c, mask, gamma * sums.gap)
        store_gradient(t.dbias, c, mask, sums.g)


# --- parameters of samples ---


@triton.jit
def store_sample_gradients(t, sums, stats, n, c, mask, s, K: tl.constexpr):
    """dgamma and dbeta of each (n, c) from its sums of g and g (x - center)."""
    slot = parameter_slot(n, c, s, K)
    if K.MIX:
        batch = load_batch_stats(t, c, mask, s, K)
        rho = load_or(t.rho, c, mask, 0.0, sums.g.dtype)
        hat = mixed_hat(mixed_sums(sums, stats, batch), batch, rho)
    else:
        hat = stats.rstd * (sums.gx - stats.offset * sums.g)
    store_gradient(t.dweight, slot, mask, hat)
    store_gradient(t.dbias, slot, mask, sums.g)


# --- sums over instances; each unit leaves its own behind the table of parts ---


@triton.jit
def instance_planes(t, s, K: tl.constexpr):
    """Pointers to (n, c) of sum g, and of sum g x_hat or, for mixtures and batches,
    sum g (x - center)."""
    first = t.table + 2 * table_plane(s, K)
    return first, first + s.N.to(tl.int64) * s.C


@triton.jit
def leave_instance(t, sums, stats, n, channels, mask, s, K: tl.constexpr):
    """Leave an instance's sums of each channel for add_instances, if they are wanted.

    OF_SAMPLES: they are also the gradients of its parameters, and the sums left are weighted.
    """
    if K.OF_SAMPLES:
        store_sample_gradients(t, sums, stats, n, channels.c, mask, s, K)
    if K.GATHERS:
        of_g, of_gx = instance_planes(t, s, K)
        slot = n * s.C + channels.c
        if K.OF_SAMPLES:
            sums = weighted(load_or(t.weight, slot, mask, 1.0, sums.g.dtype), sums)
        OF_BATCH: tl.constexpr = K.MIX or K.STATS_OF_BATCH
        hat = sums.gx if OF_BATCH else stats.rstd * (sums.gx - stats.offset * sums.g)
        tl.store(of_g + slot, sums.g, mask=mask)
        tl.store(of_gx + slot, hat, mask=mask)


@triton.jit
def add_instances(t, u, s, K: tl.constexpr):
    """dgamma, dbeta and drho of the channels of the units u of all instances. If statistics are the
    batch's, also the sums over the batch."""
    BLOCK: tl.constexpr = merged_at_once(K.BLOCK_C, K.SETS)
    for block in range(tl.cdiv(s.W, BLOCK)):
        channels = block_of_channels(u, block, BLOCK, s)
        if K.MIX:
            sums = mixed_batch_sums(t, channels, s, K)
            store_batch_sums(t, channels.c, channels.mask, sums, s, K)
            store_mixed_gradients(t, sums, channels.c, channels.mask, s, K)
        elif K.STATS_OF_BATCH:
            store_sums(t, 0, channels.c, channels.mask, batch_sums(t, channels, s, K), s, K)
        else:
            of_g, of_hat = instance_planes(t, s, K)
            c, mask = channels.c, channels.mask
            g, hat = part_pairs(of_g, of_hat, 0, c, mask, s.C, s.N, BLOCK)
            store_gradient(t.dweight, c, mask, hat)
            store_gradient(t.dbias, c, mask, g)


@triton.jit
def batch_sums(t, channels, s, K: tl.constexpr):
    """Sums of g and g (x - mean) of each channel over all instances, in order."""
    BLOCK_C: tl.constexpr = K.BLOCK_C
    of_g, of_gx = instance_planes(t, s, K)
    c, mask = channels.c, channels.mask
    g, gx = part_pairs(of_g, of_gx, 0, c, mask, s.C, s.N, BLOCK_C)
    return about_mean(Sums(g, gx), load_stats(t, 0, c, mask, s, K))


@triton.jit
def mixed_batch_sums(t, channels, s, K: tl.constexpr):
    """MixedSums of each channel over all instances, in order."""
    BLOCK_P: tl.constexpr = table_rows(K.BLOCK_C)
    column, columns = channels.c[None, :], channels.mask[None, :]
    of_g, of_gx = instance_planes(t, s, K)
    zero = tl.full([BLOCK_P, K.BLOCK_C], 0, t.table.dtype.element_ty)
    total = MixedSums(zero, zero, zero, zero)
    batch = load_batch_stats(t, column, columns, s, K)
    for first in range(0, s.N, BLOCK_P):
        n = first + tl.arange(0, BLOCK_P).to(tl.int64)[:, None]
        mask = (n < s.N) & columns
        g = tl.load(of_g + n * s.C + column, mask=mask, other=0.0, cache_modifier=".cg")
        gx = tl.load(of_gx + n * s.C + column, mask=mask, other=0.0, cache_modifier=".cg")
        each = mixed_sums(Sums(g, gx), load_stats(t, n, column, mask, s, K), batch)
        total = MixedSums(
            total.g + g,
            total.gx + tl.where(mask, each.gx, 0.0),
            total.hat + each.hat,
            total.gap + tl.where(mask, each.gap, 0.0),
        )
    return MixedSums(
        tl.sum(total.g, axis=0),
        tl.sum(total.gx, axis=0),
        tl.sum(total.hat, axis=0),
        tl.sum(total.gap, axis=0),
    )
