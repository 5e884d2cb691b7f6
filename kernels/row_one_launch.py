"""Layer and RMS norm in one launch: a program has a whole row. The forward comes first, then the
backward."""

import triton
import triton.language as tl

from .arithmetic import accumulation_type, inverse_std, split_shape
from .row_outputs import affine_gradient, store_dx, store_output, store_own_gradients
from .row_shares import add_to_shares, run_of, store_shares, within
from .row_sums import gradient_sums, normalised, row_moments
from .row_tiles import (
    gated_input,
    kept_affine,
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
    wide_affine,
)
from .row_types import SIZES, Stats
from .sync import XOR_ZERO, keep_packed


@triton.jit
def first_column():
    return tl.full([], 0, tl.int32)


@triton.jit
def forward_turns(t, eps, affine, first, end, step, s, K: tl.constexpr):
    """y and the statistics of every `step`-th block from `first` on."""
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    start = first_column()
    for block in tl.range(first, end, step, num_stages=K.STAGES):
        tile = row_tile(block, start, s, K)
        x = load_sum(t, tile, K)
        count = part_count(start, s, K, ACC)
        mean, m2 = row_moments(x.to(ACC), count, tile, K)
        stats = Stats(mean, inverse_std(m2 / s.L, eps))
        at = own_affine(t, tile, s, K) if K.PARAMETERS == "own" else affine
        store_output(t, x.to(ACC), stats, at, tile, s, K)
        store_stats(t.stats, stats, tile, tile.row < s.R, s, K)


@triton.jit(do_not_specialize=SIZES)
def row_norm_kernel(
    t, eps: tl.float64, R, L, row_blocks, parts, groups, A, inner, K: tl.constexpr
):  # fmt: skip
    """y and the statistics of each row; `groups` programs take blocks in turns."""
    s = sizes(R, L, parts, row_blocks, A, inner, K)
    group, start = tl.program_id(0), first_column()
    if K.PARAMETERS == "grouped":
        begin, stop = run_of(group, groups, row_blocks)
        for a in range(begin // s.blocks, tl.cdiv(stop, s.blocks)):
            affine = load_affine(t, a, start, s, K)
            first, end = within(begin, stop, a, s)
            forward_turns(t, eps, affine, first, end, 1, s, K)
    elif K.PARAMETERS == "own":
        forward_turns(t, eps, None, group, row_blocks, groups, s, K)
    else:
        affine = load_affine(t, 0, start, s, K)
        forward_turns(t, eps, affine, group, row_blocks, groups, s, K)


@triton.jit
def backward_turns(t, affine, first, end, step, s, K: tl.constexpr):
    """dx of every `step`-th block from `first` on. Returns the blocks' contributions to dweight
    and dbias, for each row of a block."""
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    start = first_column()
    SHAPE: tl.constexpr = split_shape(K.BLOCK_L // K.INNER, K.BLOCK_R, K.INNER)
    dweight = tl.zeros(SHAPE, ACC)
    dbias = dweight
    for block in tl.range(first, end, step, num_stages=K.STAGES):
        tile = row_tile(block, start, s, K)
        at = own_affine(t, tile, s, K) if K.PARAMETERS == "own" else affine
        x, dy = load(t.x, tile), load(t.dy, tile)
        gate = load_gate(t, x, tile)
        stats = load_stats(t.stats, tile, s, K)
        wide = wide_affine(at, K, ACC)
        x_hat = normalised(gated_input(t, x, gate, K), stats, tile, K)
        g = affine_gradient(t, dy, gate, x_hat, wide, tile, s, K)
        row_g, row_gx = gradient_sums(wide.gamma * g.to(ACC), x_hat, K)
        gamma = wide.gamma
        if K.PACKED:  # nothing that is wide is kept from the sums until here
            gamma = keep_packed(at.gamma, XOR_ZERO).to(ACC)
            x, g = keep_packed(x, XOR_ZERO), keep_packed(g, XOR_ZERO)
            x_hat = normalised(gated_input(t, x, gate, K), stats, tile, K)
        store_own_gradients(t, g, x_hat, tile, K)
        if t.partial is not None:
            dweight, dbias = add_to_shares(t, dweight, dbias, g, x_hat, K)
        store_dx(t, g, x, dy, gate, x_hat, gamma, row_g / s.L, row_gx / s.L, stats.rstd, tile, K)
    return dweight, dbias


@triton.jit(do_not_specialize=SIZES)
def row_norm_backward_kernel(t, R, L, row_blocks, parts, groups, A, inner, K: tl.constexpr):
    """dx of all rows, and each program's share of dweight and dbias; x and dy are read once."""
    s = sizes(R, L, parts, row_blocks, A, inner, K)
    group, start = tl.program_id(0), first_column()
    if K.PARAMETERS == "grouped":
        begin, stop = run_of(group, groups, row_blocks)
        for a in range(begin // s.blocks, tl.cdiv(stop, s.blocks)):
            affine = kept_affine(t, a, start, s, K)
            first, end = within(begin, stop, a, s)
            dweight, dbias = backward_turns(t, affine, first, end, 1, s, K)
            if t.partial is not None:
                store_shares(t, dweight, dbias, start, group + a, groups + A, s, K)
    elif K.PARAMETERS == "own":
        backward_turns(t, None, group, row_blocks, groups, s, K)
    else:
        affine = kept_affine(t, 0, start, s, K)
        dweight, dbias = backward_turns(t, affine, group, row_blocks, groups, s, K)
        if t.partial is not None:
            store_shares(t, dweight, dbias, start, group, groups, s, K)
