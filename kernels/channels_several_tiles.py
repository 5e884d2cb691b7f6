"""A norm of (N, C, S) in one launch, for sets that need several tiles: a program keeps all tiles of
its set in registers, from statistics to output.

For contiguous sets within an instance; the backward is for norms without a residual. Members of
clusters use the same functions for their tiles (`channels_cluster.py`). The loads of
all tiles are on their way together. Sums are taken by threads first: forward over all tiles, and
then once by the program; backward for each block of channels, whose own sums are wanted too. The
tiles stay as loaded; each walk over them widens those of 16 bits again. The backward is below.
"""

import triton
import triton.language as tl

from .arithmetic import accumulation_type, centred, product, sum_both
from .channel_activation import activation_gradient, store_output
from .channel_gradients import Sums, about_mean, instance_weight, slopes_of
from .channel_instances import add_instances, leave_instance
from .channel_lanes import place, sizes, unit_channels
from .channel_moments import Moments, publish
from .channel_stats import affine_of, average_instances, load_stats, stats_of, store_stats
from .channel_tiles import load, load_pivot, no_outer, outer_sum, spread, store, tile_of
from .channel_types import SIZES, Member, Tile
from .sync import XOR_ZERO, arrived_last, keep_packed, recomputed, widen


@triton.jit(do_not_specialize=SIZES)
def several_tiles_kernel(
    t, momentum: tl.float64, eps: tl.float64, N, C, S, D, W, u_blocks, parts, steps,
    K: tl.constexpr,
):  # fmt: skip
    """y = act(norm(x) + residual), the statistics for the backward, and the running ones."""
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    TILES: tl.constexpr = K.TILES  # Triton 3.6 calls nothing with a bare K.NAME
    TILES_S: tl.constexpr = K.TILES_S
    s = sizes(N, C, S, D, W, u_blocks, parts, steps, K)
    at = place(tl.program_id(0), tl.full([], 0, tl.int32), s, K, False)
    tiles = load_set(t.x, at, s, K)
    rough, m = set_moments(tiles, tl.full([], 1, ACC) * s.D * s.S, at, s, K)
    channels = unit_channels(at.u, 0, s, K)
    zero = tl.full([K.BLOCK_C], 0, ACC)
    rough, m = zero + rough, Moments(zero + m.count, zero + m.mean, zero + m.m2)
    if t.table is not None:  # for average_instances
        n = at.n + tl.zeros_like(channels.c).to(tl.int64)
        pivot = load_pivot(t, n, channels.c, channels.mask, s, K)
        publish(t, Moments(m.count, m.mean + (rough - pivot), m.m2), at, channels, s, K)
    stats = stats_of(rough, m, eps, K)
    store_stats(t, at.n, channels.c, channels.mask & (channels.local == 0), stats, s, K)
    tiles = widened_anew(tiles)
    at = seen_anew(at)
    for block in tl.static_range(TILES // TILES_S):
        channels = unit_channels(at.u, block, s, K)
        affine = affine_of(t, stats, at.n, channels.c, channels.mask, s, K)
        for i in tl.static_range(block * TILES_S, (block + 1) * TILES_S):
            x = widen(tiles[i], ACC) - spread(affine.center, K)
            store_output(t, x, affine, set_tile(i, at, s, K), s, K)
    if t.tickets is not None:
        if arrived_last(t.tickets + at.u, s.N):
            average_instances(t, at.u, momentum, s, K)


@triton.jit
def set_tile(i: tl.constexpr, at, s, K: tl.constexpr):
    """A program's i-th tile: blocks of positions, channel block by channel block."""
    if K.CLUSTER:
        tile = tile_of_member(i, at, s, K)
    else:
        BLOCK: tl.constexpr = i // K.TILES_S
        START: tl.constexpr = i % K.TILES_S * K.BLOCK_S
        at = Member(at.index, at.n, at.u, BLOCK, at.part, at.start)
        tile = tile_of(at.n, tl.full([], START, tl.int64), at, s, K)
    if K.WHOLE:
        everything = tl.full(tile.mask.shape, True, tl.int1)
        tile = Tile(tile.at, tile.n, tile.start, tile.lanes, everything, tile.offsets)
    return tile


@triton.jit
def tile_of_member(i: tl.constexpr, at, s, K: tl.constexpr):
    """The i-th tile of a member of a cluster, all of one channel: of a block of instances, if sets
    run over the batch, or of its own part of the positions."""
    if K.BATCH:
        n, start = (
            at.n.to(tl.int32),
            at.start.to(tl.int32),
        )  # 64 bits would take twice as many steps
        for _ in tl.static_range(i):  # the compiler takes these steps once for all tiles
            start += K.ROW
            is_over = start >= s.S
            n = tl.where(is_over, n + K.BLOCK_S // K.ROW, n)
            start = tl.where(is_over, 0, start)
        return tile_of(n.to(tl.int64), start.to(tl.int64), at, s, K)
    else:
        return tile_of(at.n, at.start + i * K.BLOCK_S, at, s, K)


@triton.jit
def load_set(ptr, at, s, K: tl.constexpr):
    TILES: tl.constexpr = K.TILES
    tiles = ()
    for i in tl.static_range(TILES):
        # Triton knows no starred expressions.
        tiles = tiles + (load(ptr, set_tile(i, at, s, K)),)  # type: ignore[assignment]  # noqa: RUF005
    return tiles


@triton.jit
def seen_anew(at):
    """A program's place itself. The offsets that the compiler has computed from it end here."""
    return Member(at.index, recomputed(at.n), at.u, at.block, at.part, at.start)


@triton.jit
def widened_anew(tiles):
    """The tiles themselves. What the compiler knows of their values in float32 ends here."""
    same = ()
    for i in tl.static_range(len(tiles)):
        same = same + (keep_packed(tiles[i], XOR_ZERO),)  # noqa: RUF005
    return same


@triton.jit
def set_moments(tiles, count, at, s, K: tl.constexpr):
    """(a rough mean, moments relative to it) of a program's `count` elements: as
    `channel_moments.whole_sets`."""
    ACC: tl.constexpr = count.dtype
    TILES: tl.constexpr = K.TILES
    SIZE: tl.constexpr = K.LANES * K.INNER
    share = 1.0 / count
    total = no_outer(K, ACC)
    for i in tl.static_range(TILES):
        total += outer_sum(widen(tiles[i], ACC) * share)
    rough = tl.sum(tl.reshape(total, [SIZE]), axis=0)
    tiles = widened_anew(tiles)
    total, squares = no_outer(K, ACC), no_outer(K, ACC)
    for i in tl.static_range(TILES):
        tile = set_tile(i, at, s, K)
        deviation = tl.where(tile.mask, widen(tiles[i], ACC) - rough, 0.0)
        total += outer_sum(deviation)
        squares += outer_sum(deviation * deviation)
    total, squares = sum_both(tl.reshape(total, [SIZE]), tl.reshape(squares, [SIZE]), 0)
    mean, m2 = centred(tl.zeros_like(rough), total, squares, count)
    return rough, Moments(count, mean, m2)


# --- backward ---


@triton.jit(do_not_specialize=SIZES)
def several_tiles_backward_kernel(
    t, N, C, S, D, W, u_blocks, parts, steps, K: tl.constexpr
):  # fmt: skip
    """dx = scale g + q (x - center) + r, g = dy * act'; and the parameters' gradients."""
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    BLOCKS: tl.constexpr = K.TILES // K.TILES_S
    s = sizes(N, C, S, D, W, u_blocks, parts, steps, K)
    at = place(tl.program_id(0), tl.full([], 0, tl.int32), s, K, False)
    tiles, dys = load_set(t.x, at, s, K), load_set(t.dy, at, s, K)
    channels = unit_channels(at.u, 0, s, K)
    stats = load_stats(t, at.n, channels.c, channels.mask, s, K)
    zero = tl.full([K.BLOCK_C], 0, ACC)
    total = Sums(zero, zero)
    for block in tl.static_range(BLOCKS):
        total = add_block(t, tiles, dys, block, total, stats, at, s, K)
    g, gx = sum_both(total.g, total.gx, 0)
    count = s.D.to(ACC) * s.S
    slopes = slopes_of(stats, about_mean(Sums(zero + g, zero + gx), stats), count, K)
    if t.dx is not None:
        tiles, dys = widened_anew(tiles), widened_anew(dys)
        at = seen_anew(at)
        for block in tl.static_range(BLOCKS):
            channels = unit_channels(at.u, block, s, K)
            affine = affine_of(t, stats, at.n, channels.c, channels.mask, s, K)
            store_gradients(t, tiles, dys, block, affine, slopes, at, s, K)
    if K.GATHERS:
        if arrived_last(t.tickets + at.u, s.N):
            add_instances(t, at.u, s, K)


@triton.jit
def tile_gradient(t, x, dy, i: tl.constexpr, affine, at, s, K: tl.constexpr):
    """(the i-th tile, x - center, g = dy * act') from x and dy as they are stored."""
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    tile = set_tile(i, at, s, K)
    x = widen(x, ACC) - spread(affine.center, K)
    return tile, x, widen(activation_gradient(t, x, dy, affine, tile, s, K), ACC)


@triton.jit
def add_block(t, tiles, dys, block: tl.constexpr, total, stats, at, s, K: tl.constexpr):
    """The weighted sums of a set with those of one more block of channels."""
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    channels = unit_channels(at.u, block, s, K)
    affine = affine_of(t, stats, at.n, channels.c, channels.mask, s, K)
    g, gx = block_sums(t, tiles, dys, block, affine, at, s, K)
    leave_instance(t, Sums(g, gx), stats, at.n, channels, channels.mask, s, K)
    weight = instance_weight(t, at.n, channels.c, channels.mask, s, K, ACC)
    return Sums(total.g + weight * g, total.gx + weight * gx)


@triton.jit
def block_sums(t, tiles, dys, block: tl.constexpr, affine, at, s, K: tl.constexpr):
    """Sums of g and of g (x - center) of each channel of a program's block."""
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    TILES_S: tl.constexpr = K.TILES_S
    of_g, of_gx = no_outer(K, ACC), no_outer(K, ACC)
    for i in tl.static_range(block * TILES_S, (block + 1) * TILES_S):
        _, x, g = tile_gradient(t, tiles[i], dys[i], i, affine, at, s, K)
        of_g += outer_sum(g)
        # One tile alone would be fused with the sum across lanes: see `product`.
        of_gx += outer_sum(product(g, x) if TILES_S == 1 else g * x)
    return sum_both(of_g, of_gx, 1)


@triton.jit
def store_gradients(t, tiles, dys, block: tl.constexpr, affine, slopes, at, s, K: tl.constexpr):
    """dx of a program's block of channels."""
    TILES_S: tl.constexpr = K.TILES_S
    for i in tl.static_range(block * TILES_S, (block + 1) * TILES_S):
        tile, x, g = tile_gradient(t, tiles[i], dys[i], i, affine, at, s, K)
        dx = spread(affine.scale, K) * g
        if K.VARIANCE:
            dx += spread(slopes.q, K) * x
        store(t.dx, dx + spread(slopes.r, K), tile)
