"""Gradients of parameters of samples.

In one launch over the batch the lanes are (n, c). If the members of a cluster each have a part of
the positions, they leave their sums behind the table of parts: planes (position block, n, c) of
sums of g and of g (x - center).
"""

import triton
import triton.language as tl

from .arithmetic import load_or, store_gradient
from .channel_gradients import Sums
from .channel_lanes import parameter_slot
from .channel_mixtures import mixed_hat, mixed_sums
from .channel_moments import table_plane
from .channel_stats import load_batch_stats, load_stats


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


@triton.jit
def lane_weight(t, lanes, s, K: tl.constexpr, ACC: tl.constexpr):
    """gamma of each lane."""
    return load_or(t.weight, parameter_slot(lanes.n, lanes.c, s, K), lanes.mask, 1.0, ACC)


@triton.jit
def lane_planes(t, s, K: tl.constexpr):
    """Pointers to (position block, n, c) of the lanes' sums of g and of g (x - center)."""
    of_g = t.table + 2 * table_plane(s, K)
    return of_g, of_g + tl.cdiv(s.S, K.BLOCK_S).to(tl.int64) * s.N * s.C


@triton.jit
def leave_lanes(t, sums, tile, s, K: tl.constexpr):
    """Store the gradients of the lanes' parameters; in a cluster leave sums for add_lanes."""
    lanes = tile.lanes
    if K.CLUSTER:
        if t.dweight is not None or t.dbias is not None:
            of_g, of_gx = lane_planes(t, s, K)
            block = (tile.at.part % tl.cdiv(s.S, K.BLOCK_S)).to(tl.int64)
            slot = (block * s.N + lanes.n) * s.C + lanes.c
            tl.store(of_g + slot, sums.g, mask=lanes.mask)
            tl.store(of_gx + slot, sums.gx, mask=lanes.mask)
    else:
        stats = load_stats(t, lanes.n, lanes.c, lanes.mask, s, K)
        store_sample_gradients(t, sums, stats, lanes.n, lanes.c, lanes.mask, s, K)


@triton.jit
def add_lanes(t, tile, s, K: tl.constexpr):
    """Add up, in order, the sums that the members left for the lanes' positions, and store the
    gradients of their parameters. The member with their first positions does this."""
    if t.dweight is not None or t.dbias is not None:
        s_blocks = tl.cdiv(s.S, K.BLOCK_S)
        if tile.at.part % s_blocks == 0:
            lanes = tile.lanes
            of_g, of_gx = lane_planes(t, s, K)
            g = tl.full([K.LANES], 0, t.table.dtype.element_ty)
            gx = g
            for block in range(s_blocks):
                slot = (s.N.to(tl.int64) * block + lanes.n) * s.C + lanes.c
                g += tl.load(of_g + slot, mask=lanes.mask, other=0.0, cache_modifier=".cg")
                gx += tl.load(of_gx + slot, mask=lanes.mask, other=0.0, cache_modifier=".cg")
            stats = load_stats(t, lanes.n, lanes.c, lanes.mask, s, K)
            store_sample_gradients(t, Sums(g, gx), stats, lanes.n, lanes.c, lanes.mask, s, K)
