"""Sums over instances: each unit leaves its own sums behind the table of parts, and the last unit
to arrive adds them up, in order.
"""

import triton
import triton.language as tl

from .arithmetic import load_or, store_gradient
from .channel_gradients import (
    Sums,
    about_mean,
    instance_weight,
    published_sums,
    store_sums,
    sums_of_sets,
    weighted,
)
from .channel_lanes import block_of_channels, merged_at_once, sets_at_once
from .channel_mixtures import MixedSums, mixed_sums, store_batch_sums, store_mixed_gradients
from .channel_moments import table_plane
from .channel_samples import store_sample_gradients
from .channel_stats import load_batch_stats, load_stats
from .tables import part_pairs, table_rows


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
def unit_sums(t, at, s, K: tl.constexpr):
    """Weighted sums of g and g (x - center) over each set of a unit (`first_channels`). Also leaves
    the channels' own sums for add_instances."""
    zero = tl.full([sets_at_once(K.BLOCK_C, K.SETS)], 0, t.table.dtype.element_ty)
    total = Sums(zero, zero)
    BLOCK: tl.constexpr = merged_at_once(K.BLOCK_C, K.SETS)
    for block in range(tl.cdiv(s.W, BLOCK)):
        channels = block_of_channels(at.u, block, BLOCK, s)
        own = published_sums(t, at.n, channels, s, K)
        stats = load_stats(t, at.n, channels.c, channels.mask, s, K)
        leave_instance(t, own, stats, at.n, channels, channels.mask, s, K)
        weight = instance_weight(t, at.n, channels.c, channels.mask, s, K, own.g.dtype)
        sums = sums_of_sets(weighted(weight, own), channels.local, s, K)
        total = Sums(total.g + sums.g, total.gx + sums.gx)
    return total


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
