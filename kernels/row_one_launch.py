"""Layer and RMS norm in one launch: a program has a whole row, or the members of a cluster share it
and wait for one another. The forward comes first, then the backward."""

import triton
import triton.language as tl

from .arithmetic import accumulation_type, inverse_std, split_shape
from .row_outputs import affine_gradient, store_dx, store_output, store_own_gradients
from .row_shares import add_to_shares, run_of, store_shares, within
from .row_sums import (
    gradient_sums,
    normalised,
    publish_moments,
    publish_sums,
    published_moments,
    published_sums,
    row_moments,
)
from .row_tiles import (
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
)
from .row_types import SIZES, Stats
from .sync import keep_packed, wait_for_members


@triton.jit
def forward_turns(t, eps, affine, first, end, step, group, part, s, K: tl.constexpr):
    """y and the statistics of every `step`-th block from `first` on."""
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    start = part * K.BLOCK_L
    for block in tl.range(first, end, step, num_stages=K.STAGES):
        tile = row_tile(block, start, s, K)
        x = load_sum(t, tile, K)
        count = part_count(start, s, K, ACC)
        mean, m2 = row_moments(x.to(ACC), count, tile, K)
        if K.CLUSTER:
            publish_moments(t.table, count, mean, m2, part, tile, s, K)
            wait_for_members(t.counters + group, part, s.parts)
            mean, m2 = published_moments(t.table, tile, s, K)
            x = keep_packed(x)
        stats = Stats(mean, inverse_std(m2 / s.L, eps))
        at = own_affine(t, tile, s, K) if K.PARAMETERS == "own" else affine
        store_output(t, x.to(ACC), stats, at, tile, s, K)
        store_stats(t.stats, stats, tile, (tile.row < s.R) & (tile.row * 0 + part == 0), s, K)


@triton.jit(do_not_specialize=SIZES)
def row_norm_kernel(
    t, eps: tl.float64, R, L, row_blocks, parts, groups, A, inner, K: tl.constexpr
):  # fmt: skip
    """y and the statistics of each row; `groups` programs or clusters take blocks in turns."""
    s = sizes(R, L, parts, row_blocks, A, inner, K)
    group = tl.program_id(0) // parts if K.CLUSTER else tl.program_id(0)
    part = tl.program_id(0) % parts if K.CLUSTER else tl.full([], 0, tl.int32)
    start = part * K.BLOCK_L
    if K.PARAMETERS == "grouped":
        begin, stop = run_of(group, groups, row_blocks)
        for a in range(begin // s.blocks, tl.cdiv(stop, s.blocks)):
            affine = load_affine(t, a, start, s, K)
            first, end = within(begin, stop, a, s)
            forward_turns(t, eps, affine, first, end, 1, group, part, s, K)
    elif K.PARAMETERS == "own":
        forward_turns(t, eps, None, group, row_blocks, groups, group, part, s, K)
    else:
        affine = load_affine(t, 0, start, s, K)
        forward_turns(t, eps, affine, group, row_blocks, groups, group, part, s, K)


@triton.jit
def backward_turns(t, affine, first, end, step, group, part, s, K: tl.constexpr):
    """dx of every `step`-th block from `first` on. Returns the blocks' contributions to dweight
    and dbias, for each row of a block."""
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    start = part * K.BLOCK_L
    SHAPE: tl.constexpr = split_shape(K.BLOCK_L // K.INNER, K.BLOCK_R, K.INNER)
    dweight = tl.zeros(SHAPE, ACC)
    dbias = dweight
    for block in tl.range(first, end, step, num_stages=K.STAGES):
        tile = row_tile(block, start, s, K)
        at = own_affine(t, tile, s, K) if K.PARAMETERS == "own" else affine
        x, dy = load(t.x, tile), load(t.dy, tile)
        gate = load_gate(t, x, tile)
        stats = load_stats(t.stats, tile, s, K)
        x_hat = normalised(gated_input(t, x, gate, K), stats, tile, K)
        g = affine_gradient(t, dy, gate, x_hat, at, tile, s, K)
        row_g, row_gx = gradient_sums(at.gamma * g.to(ACC), x_hat, K)
        store_own_gradients(t, g, x_hat, tile, K)
        if t.partial is not None:
            dweight, dbias = add_to_shares(t, dweight, dbias, g, x_hat, K)
        if K.CLUSTER:
            publish_sums(t.table, row_g, row_gx, part, tile, s, K)
            wait_for_members(t.barriers + group, part, s.parts)
            row_g, row_gx = published_sums(t.table, tile, s, K)
            x, g = keep_packed(x), keep_packed(g)
            x_hat = normalised(gated_input(t, x, gate, K), stats, tile, K)
        store_dx(t, g, x, dy, gate, x_hat, at.gamma, row_g / s.L, row_gx / s.L, stats.rstd, tile, K)
    return dweight, dbias


@triton.jit(do_not_specialize=SIZES)
def row_norm_backward_kernel(t, R, L, row_blocks, parts, groups, A, inner, K: tl.constexpr):
    """dx of all rows, and each group's share of dweight and dbias; x and dy are read once."""
    s = sizes(R, L, parts, row_blocks, A, inner, K)
    group, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    start = part * K.BLOCK_L
    if K.PARAMETERS == "grouped":
        begin, stop = run_of(group, groups, row_blocks)
        for a in range(begin // s.blocks, tl.cdiv(stop, s.blocks)):
            affine = load_affine(t, a, start, s, K)
            first, end = within(begin, stop, a, s)
            dweight, dbias = backward_turns(t, affine, first, end, 1, group, part, s, K)
            if t.partial is not None:
                store_shares(t, dweight, dbias, start, group + a, groups + A, s, K)
    elif K.PARAMETERS == "own":
        backward_turns(t, None, group, row_blocks, groups, group, part, s, K)
    else:
        affine = load_affine(t, 0, start, s, K)
        dweight, dbias = backward_turns(t, affine, group, row_blocks, groups, group, part, s, K)
        if t.partial is not None:
            store_shares(t, dweight, dbias, start, group, groups, s, K)
