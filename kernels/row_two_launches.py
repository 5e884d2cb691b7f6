"""Layer and RMS norm in two launches, which each read the tensor. The second walks backwards: it
begins with the data that the first left in the L2 cache. The forward comes first."""

import triton
import triton.language as tl

from .arithmetic import accumulation_type, across, inverse_std, split_shape
from .row_outputs import affine_gradient, store_dx, store_output, store_own_gradients
from .row_shares import add_shares, add_to_shares, run_of, store_shares, within
from .row_sums import (
    gradient_sums,
    merge_moments,
    normalised,
    publish_moments,
    publish_sums,
    published_moments,
    published_sums,
    row_moments,
)
from .row_tiles import (
    affine_of,
    gated_input,
    load,
    load_affine,
    load_gate,
    load_stats,
    load_sum,
    own_affine,
    part_count,
    row_tile,
    sizes,
    store_stats,
    with_gate,
)
from .row_types import SIZES, Stats
from .sync import arrived_last


@triton.jit(do_not_specialize=["R", "L", "parts", "steps"])
def row_moments_kernel(t, eps: tl.float64, R, L, parts, steps, K: tl.constexpr):
    """Statistics of rows, by parts of `steps` tiles; a block's last program merges its parts."""
    s = sizes(R, L, parts, None, None, None, K)
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    block, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    begin = part.to(tl.int64) * steps * K.BLOCK_L
    count = across(tl.full([K.BLOCK_R], 0.0, ACC))
    mean, m2 = count, count
    end = tl.minimum(begin + steps * K.BLOCK_L, s.L)
    for start in tl.range(begin, end, K.BLOCK_L, num_stages=K.STAGES):
        tile = row_tile(block, start, s, K)
        x = load_sum(t, tile, K).to(ACC)
        tile_count = part_count(start, s, K, ACC)
        tile_mean, tile_m2 = row_moments(x, tile_count, tile, K)
        count, mean, m2 = merge_moments(count, mean, m2, tile_count, tile_mean, tile_m2, K)
    tile = row_tile(block, begin, s, K)
    publish_moments(t.table, count, mean, m2, part, tile, s, K)
    if arrived_last(t.tickets + block, parts):
        mean, m2 = published_moments(t.table, tile, s, K)
        stats = Stats(mean, inverse_std(m2 / s.L, eps))
        store_stats(t.stats, stats, tile, tile.row < s.R, s, K)


@triton.jit
def run_and_slice(program, s, K: tl.constexpr):
    """(number of the program's run, its first column). The i-th of `runs` runs has every runs-th
    block from the i-th last one on, backwards: so programs together walk backwards."""
    slices = tl.cdiv(s.L, K.BLOCK_L)
    return program // slices, (slices - 1 - program % slices).to(tl.int64) * K.BLOCK_L


@triton.jit(do_not_specialize=["R", "L", "row_blocks", "runs", "A", "inner"])
def row_apply_kernel(t, R, L, row_blocks, runs, A, inner, K: tl.constexpr):
    """y, a slice of columns of the rows of a run for each program."""
    s = sizes(R, L, 0, row_blocks, A, inner, K)
    run, start = run_and_slice(tl.program_id(0), s, K)
    affine = load_affine(t, 0, start, s, K) if K.PARAMETERS == "shared" else None
    for i in tl.range(run, row_blocks, runs, num_stages=K.STAGES):
        apply_tile(t, row_blocks - 1 - i, start, affine, s, K)


@triton.jit
def apply_tile(t, block, start, affine, s, K: tl.constexpr):
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    tile = row_tile(block, start, s, K)
    x = load(t.total if t.addend is not None else t.x, tile)
    x = with_gate(t, x, tile, K).to(ACC)
    stats = load_stats(t.stats, tile, s, K)
    at = affine_of(t, affine, block, start, tile, s, K)
    store_output(t, x, stats, at, tile, s, K)


@triton.jit
def sums_of_turns(t, affine, first, end, step, part, s, K: tl.constexpr):
    """Sums along a slice of columns of each row of every `step`-th block from `first` on. Returns
    the sums down the columns, for each row of a block."""
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    SHAPE: tl.constexpr = split_shape(K.BLOCK_L // K.INNER, K.BLOCK_R, K.INNER)
    start = part.to(tl.int64) * K.BLOCK_L
    dweight = tl.zeros(SHAPE, ACC)
    dbias = dweight
    for block in tl.range(first, end, step, num_stages=K.STAGES):
        tile = row_tile(block, start, s, K)
        at = own_affine(t, tile, s, K) if K.PARAMETERS == "own" else affine
        x, dy = load(t.x, tile), load(t.dy, tile)
        gate = load_gate(t, x, tile)
        x_hat = normalised(gated_input(t, x, gate, K), load_stats(t.stats, tile, s, K), tile, K)
        g = affine_gradient(t, dy, gate, x_hat, at, tile, s, K)
        row_g, row_gx = gradient_sums(at.gamma * g.to(ACC), x_hat, K)
        publish_sums(t.table, row_g, row_gx, part, tile, s, K)
        dweight, dbias = add_to_shares(t, dweight, dbias, g, x_hat, K)
    return dweight, dbias


@triton.jit(do_not_specialize=SIZES)
def row_sums_kernel(t, R, L, row_blocks, parts, groups, A, inner, K: tl.constexpr):
    """Sums along a slice of columns of each row, and down the columns; rows in turns."""
    s = sizes(R, L, parts, row_blocks, A, inner, K)
    group, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    start = part.to(tl.int64) * K.BLOCK_L
    if K.PARAMETERS == "grouped":
        begin, stop = run_of(group, groups, row_blocks)
        for a in range(begin // s.blocks, tl.cdiv(stop, s.blocks)):
            affine = load_affine(t, a, start, s, K)
            first, end = within(begin, stop, a, s)
            dweight, dbias = sums_of_turns(t, affine, first, end, 1, part, s, K)
            if t.partial is not None:
                store_shares(t, dweight, dbias, start, group + a, groups + A, s, K)
    elif K.PARAMETERS == "own":
        sums_of_turns(t, None, group, row_blocks, groups, part, s, K)
    else:
        affine = load_affine(t, 0, start, s, K)
        dweight, dbias = sums_of_turns(t, affine, group, row_blocks, groups, part, s, K)
        if t.partial is not None:
            store_shares(t, dweight, dbias, start, group, groups, s, K)


@triton.jit(do_not_specialize=[*SIZES, "runs", "shared_blocks"])
def row_dx_kernel(
    t, R, L, row_blocks, parts, groups, A, inner, runs, shared_blocks,
    K: tl.constexpr, SHARES_L: tl.constexpr, SHARES_G: tl.constexpr,
):  # fmt: skip
    """dx, as row_apply_kernel's y. The first programs add up the groups' shares instead; each share
    covers some of the `shared_blocks`."""
    s = sizes(R, L, parts, row_blocks, A, inner, K)
    adders = adders_of(s, K, SHARES_L) if t.partial is not None else 0
    program = tl.program_id(0) - adders
    if program < 0:
        if t.partial is not None:
            add_shares(t, tl.program_id(0), groups, s.L, shared_blocks, A, SHARES_L, SHARES_G)
    else:
        run, start = run_and_slice(program, s, K)
        affine = load_affine(t, 0, start, s, K) if K.PARAMETERS == "shared" else None
        for i in tl.range(run, row_blocks, runs, num_stages=K.STAGES):
            dx_of_tile(t, row_blocks - 1 - i, start, affine, s, K)


@triton.jit
def dx_of_tile(t, block, start, affine, s, K: tl.constexpr):
    tile = row_tile(block, start, s, K)
    x, dy = load(t.x, tile), load(t.dy, tile)
    gate = load_gate(t, x, tile)
    stats = load_stats(t.stats, tile, s, K)
    at = affine_of(t, affine, block, start, tile, s, K)
    x_hat = normalised(gated_input(t, x, gate, K), stats, tile, K)
    g = affine_gradient(t, dy, gate, x_hat, at, tile, s, K)
    store_own_gradients(t, g, x_hat, tile, K)
    row_g, row_gx = published_sums(t.table, tile, s, K)
    store_dx(t, g, x, dy, gate, x_hat, at.gamma, row_g / s.L, row_gx / s.L, stats.rstd, tile, K)


@triton.jit
def adders_of(s, K: tl.constexpr, SHARES_L: tl.constexpr):
    """The programs that add up shares."""
    slices = tl.cdiv(s.L, SHARES_L)
    if K.PARAMETERS == "grouped":
        return s.A * slices
    else:
        return slices
