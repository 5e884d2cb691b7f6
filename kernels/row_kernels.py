"""The kernels of layer and RMS norm: in one launch, a row whole in a program or cut among the
members of a cluster; in two, each of which reads the tensor. Forward above backward in each."""

import triton
import triton.language as tl

from .arithmetic import LANES_FIRST, accumulation_type, across, inverse_std, store_gradient
from .row_tiles import (
    Sizes,
    Stats,
    activation_gradient,
    gradient_sums,
    load,
    load_affine,
    load_stats,
    merge_moments,
    normalised,
    publish_moments,
    publish_sums,
    published_moments,
    published_sums,
    row_moments,
    row_tile,
    store,
    store_dx,
    store_output,
    store_stats,
)
from .sync import arrived_last, keep_packed, wait_for_members

SIZES = ["R", "L", "row_blocks", "parts", "groups"]


@triton.jit
def load_sum(t, tile):
    """x, or x + addend, rounded as x is: what is normalised is what is returned."""
    x = load(t.x, tile)
    if t.addend is not None:
        ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
        x = (x.to(ACC) + load(t.addend, tile).to(ACC)).to(x.dtype)
        store(t.total, x, tile)
    return x


@triton.jit
def part_count(start, s, K: tl.constexpr, ACC: tl.constexpr):
    """The columns of a part, for each row."""
    count = tl.minimum(s.L - start, K.BLOCK_L).to(ACC)
    return across(tl.full([K.BLOCK_R], 0.0, ACC)) + count


@triton.jit(do_not_specialize=SIZES)
def row_norm_kernel(t, eps: tl.float64, R, L, row_blocks, parts, groups, K: tl.constexpr):
    """y and the statistics of each row; `groups` programs or clusters take blocks in turns."""
    s = Sizes(R, L * K.ALIGN, parts)
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    group = tl.program_id(0) // parts if K.CLUSTER else tl.program_id(0)
    part = tl.program_id(0) % parts if K.CLUSTER else tl.full([], 0, tl.int32)
    start = part * K.BLOCK_L
    affine = load_affine(t, start, s, K)
    for block in tl.range(group, row_blocks, groups, num_stages=K.STAGES):
        tile = row_tile(block, start, s, K)
        x = load_sum(t, tile)
        count = part_count(start, s, K, ACC)
        mean, m2 = row_moments(x.to(ACC), count, tile, K)
        if K.CLUSTER:
            publish_moments(t.table, count, mean, m2, part, tile, s, K)
            wait_for_members(t.counters + group, part, parts)
            mean, m2 = published_moments(t.table, tile, s, K)
            x = keep_packed(x)
        stats = Stats(mean, inverse_std(m2 / s.L, eps))
        store_output(t, x.to(ACC), stats, affine, tile, s, K)
        store_stats(t.stats, stats, tile, (tile.row < s.R) & (tile.row * 0 + part == 0), s, K)


@triton.jit(do_not_specialize=SIZES)
def row_norm_backward_kernel(t, R, L, row_blocks, parts, groups, K: tl.constexpr):
    """dx of all rows, and each group's share of dweight and dbias; x and dy are read once."""
    s = Sizes(R, L * K.ALIGN, parts)
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    group, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    start = part * K.BLOCK_L
    affine = load_affine(t, start, s, K)
    dweight = tl.zeros_like(affine.gamma)
    dbias = dweight
    for block in tl.range(group, row_blocks, groups, num_stages=K.STAGES):
        tile = row_tile(block, start, s, K)
        x, dy = load(t.x, tile), load(t.dy, tile)
        stats = load_stats(t.stats, tile, s, K)
        x_hat = normalised(x, stats, tile, K)
        g = activation_gradient(t, dy, x_hat, affine, tile, s, K)
        row_g, row_gx = gradient_sums(affine.gamma * g.to(ACC), x_hat, K)
        if t.partial is not None:
            dweight += g.to(ACC) * x_hat
            if K.CENTRED:
                dbias += g.to(ACC)
        if K.CLUSTER:
            publish_sums(t.table, row_g, row_gx, part, tile, s, K)
            wait_for_members(t.barriers + group, part, parts)
            row_g, row_gx = published_sums(t.table, tile, s, K)
            x, g = keep_packed(x), keep_packed(g)
            x_hat = normalised(x, stats, tile, K)
        store_dx(t, g, x_hat, affine.gamma, row_g / s.L, row_gx / s.L, stats.rstd, tile)
    if t.partial is not None:
        store_shares(t.partial, dweight, dbias, start, group, groups, s, K)


@triton.jit
def store_shares(partial_ptr, dweight, dbias, start, group, groups, s, K: tl.constexpr):
    """A group's share of dweight and dbias into (2, groups, L), for RMS norm (groups, L)."""
    ROWS: tl.constexpr = 0 if LANES_FIRST else 1
    column = start + tl.arange(0, K.BLOCK_L // K.INNER)[:, None] * K.INNER
    column += tl.arange(0, K.INNER)[None, :]
    slot = group.to(tl.int64) * s.L + column
    tl.store(partial_ptr + slot, tl.sum(dweight, axis=ROWS), mask=column < s.L)
    if K.CENTRED:
        plane = groups.to(tl.int64) * s.L
        tl.store(partial_ptr + plane + slot, tl.sum(dbias, axis=ROWS), mask=column < s.L)


@triton.jit
def add_shares(t, block, groups, L, BLOCK_L: tl.constexpr):
    """dweight and dbias of a block of columns: shares added in order, many at a time."""
    BLOCK_G: tl.constexpr = 128
    column = block * BLOCK_L + tl.arange(0, BLOCK_L)
    zero = tl.zeros([BLOCK_G, BLOCK_L], t.partial.dtype.element_ty)
    dweight, dbias = zero, zero
    plane = groups.to(tl.int64) * L
    for first in range(0, groups, BLOCK_G):
        group = first + tl.arange(0, BLOCK_G).to(tl.int64)
        mask = (group < groups)[:, None] & (column < L)[None, :]
        share = t.partial + group[:, None] * L + column[None, :]
        if t.dweight is not None:
            dweight += tl.load(share, mask=mask, other=0.0)
        if t.dbias is not None:
            dbias += tl.load(share + plane, mask=mask, other=0.0)
    store_gradient(t.dweight, column, column < L, tl.sum(dweight, axis=0))
    store_gradient(t.dbias, column, column < L, tl.sum(dbias, axis=0))


@triton.jit(do_not_specialize=["groups", "L"])
def add_shares_kernel(t, groups, L, ALIGN: tl.constexpr, BLOCK_L: tl.constexpr):
    """dweight and dbias, a block of columns a program: the same bits each time."""
    add_shares(t, tl.program_id(0), groups, L * ALIGN, BLOCK_L)


# --- two launches: the second walks backwards, and begins with what the first left in the L2 cache


@triton.jit(do_not_specialize=["R", "L", "parts", "steps"])
def row_moments_kernel(t, eps: tl.float64, R, L, parts, steps, K: tl.constexpr):
    """Statistics of rows, by parts of `steps` tiles; a block's last program merges its parts."""
    s = Sizes(R, L * K.ALIGN, parts)
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    block, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    begin = part.to(tl.int64) * steps * K.BLOCK_L
    count = across(tl.full([K.BLOCK_R], 0.0, ACC))
    mean, m2 = count, count
    end = tl.minimum(begin + steps * K.BLOCK_L, s.L)
    for start in tl.range(begin, end, K.BLOCK_L, num_stages=K.STAGES):
        tile = row_tile(block, start, s, K)
        x = load_sum(t, tile).to(ACC)
        tile_count = part_count(start, s, K, ACC)
        tile_mean, tile_m2 = row_moments(x, tile_count, tile, K)
        count, mean, m2 = merge_moments(count, mean, m2, tile_count, tile_mean, tile_m2, K)
    tile = row_tile(block, begin, s, K)
    publish_moments(t.table, count, mean, m2, part, tile, s, K)
    if arrived_last(t.counters + block, parts):
        mean, m2 = published_moments(t.table, tile, s, K)
        stats = Stats(mean, inverse_std(m2 / s.L, eps))
        store_stats(t.stats, stats, tile, tile.row < s.R, s, K)


@triton.jit
def backward_walk(program, row_blocks, s, K: tl.constexpr):
    """(block, first column) of a program, the last tile first."""
    slices = tl.cdiv(s.L, K.BLOCK_L)
    turn = row_blocks * slices - 1 - program
    return turn // slices, (turn % slices).to(tl.int64) * K.BLOCK_L


@triton.jit(do_not_specialize=["R", "L", "row_blocks"])
def row_apply_kernel(t, R, L, row_blocks, K: tl.constexpr):
    """y, a tile a program."""
    s = Sizes(R, L * K.ALIGN, 0)
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    block, start = backward_walk(tl.program_id(0), row_blocks, s, K)
    tile = row_tile(block, start, s, K)
    x = load(t.total if t.addend is not None else t.x, tile).to(ACC)
    affine = load_affine(t, start, s, K)
    stats = load_stats(t.stats, tile, s, K)
    store_output(t, x, stats, affine, tile, s, K)


@triton.jit(do_not_specialize=SIZES)
def row_sums_kernel(t, R, L, row_blocks, parts, groups, K: tl.constexpr):
    """Sums along a slice of columns of each row, and down the columns; rows in turns."""
    s = Sizes(R, L * K.ALIGN, parts)
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    group, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    start = part.to(tl.int64) * K.BLOCK_L
    affine = load_affine(t, start, s, K)
    dweight = tl.zeros_like(affine.gamma)
    dbias = dweight
    for block in tl.range(group, row_blocks, groups, num_stages=K.STAGES):
        tile = row_tile(block, start, s, K)
        x, dy = load(t.x, tile), load(t.dy, tile)
        x_hat = normalised(x, load_stats(t.stats, tile, s, K), tile, K)
        g = activation_gradient(t, dy, x_hat, affine, tile, s, K)
        row_g, row_gx = gradient_sums(affine.gamma * g.to(ACC), x_hat, K)
        publish_sums(t.table, row_g, row_gx, part, tile, s, K)
        dweight += g.to(ACC) * x_hat
        if K.CENTRED:
            dbias += g.to(ACC)
    if t.partial is not None:
        store_shares(t.partial, dweight, dbias, start, group, groups, s, K)


@triton.jit(do_not_specialize=SIZES)
def row_dx_kernel(
    t, R, L, row_blocks, parts, groups, K: tl.constexpr, SHARES_L: tl.constexpr
):  # fmt: skip
    """dx, a tile a program; the first programs add up the groups' shares instead."""
    s = Sizes(R, L * K.ALIGN, parts)
    adders = tl.cdiv(s.L, SHARES_L) if t.partial is not None else 0
    program = tl.program_id(0) - adders
    if program < 0:
        if t.partial is not None:
            add_shares(t, tl.program_id(0), groups, s.L, SHARES_L)
    else:
        block, start = backward_walk(program, row_blocks, s, K)
        tile = row_tile(block, start, s, K)
        x, dy = load(t.x, tile), load(t.dy, tile)
        stats = load_stats(t.stats, tile, s, K)
        affine = load_affine(t, start, s, K)
        x_hat = normalised(x, stats, tile, K)
        g = activation_gradient(t, dy, x_hat, affine, tile, s, K)
        row_g, row_gx = published_sums(t.table, tile, s, K)
        store_dx(t, g, x_hat, affine.gamma, row_g / s.L, row_gx / s.L, stats.rstd, tile)
