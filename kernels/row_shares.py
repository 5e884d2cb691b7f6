"""Which group takes which blocks of rows, and the shares of dweight and dbias that groups leave.

Groups of programs take blocks in turns. If parameters are grouped, the blocks are in the order of
the parameter rows a, and each group has a run of blocks; runs differ in length by at most one
block. A group loads gamma and beta for each a in its run, and leaves a share for it, one of
groups + A. The share's number is group + a, which grows from one group to the next, and from one a
to the next. So the shares of an a are neighbours, and are added in the order of the groups.
"""

import triton
import triton.language as tl

from .arithmetic import LANES_FIRST, store_gradient


@triton.jit
def run_of(group, groups, row_blocks):
    """A group's run of blocks, (first, end)."""
    first = group.to(tl.int64) * row_blocks // groups
    end = (group.to(tl.int64) + 1) * row_blocks // groups
    return first.to(row_blocks.dtype), end.to(row_blocks.dtype)


@triton.jit
def within(begin, stop, a, s):
    """The part (first, end) of a run that belongs to parameter row a."""
    return tl.maximum(begin, a * s.blocks), tl.minimum(stop, (a + 1) * s.blocks)


@triton.jit
def group_of(block, groups, row_blocks):
    """The group whose run contains the block."""
    return ((block + 1) * groups - 1) // row_blocks


@triton.jit
def add_to_shares(t, dweight, dbias, g, x_hat, K: tl.constexpr):
    """Add a tile's part of dweight and dbias, for each of its rows, to that of other tiles.

    RMS norm's bias gets a gradient only if rows are shifted. Layer norm mostly has a bias: it is
    not compiled again if nobody wants its gradient.
    """
    wide = g.to(x_hat.dtype)
    dweight += wide * x_hat
    if K.CENTRED or t.dbias is not None:
        dbias += wide
    return dweight, dbias


@triton.jit
def store_shares(t, dweight, dbias, start, share, shares, s, K: tl.constexpr):
    """Store a share of dweight and dbias in (2, shares, L), or without a bias (shares, L)."""
    ROWS: tl.constexpr = 0 if LANES_FIRST else 1
    column = start + tl.arange(0, K.BLOCK_L // K.INNER)[:, None] * K.INNER
    column += tl.arange(0, K.INNER)[None, :]
    slot = share.to(tl.int64) * s.L + column
    tl.store(t.partial + slot, tl.sum(dweight, axis=ROWS), mask=column < s.L)
    if K.CENTRED or t.dbias is not None:
        plane = shares.to(tl.int64) * s.L
        tl.store(t.partial + plane + slot, tl.sum(dbias, axis=ROWS), mask=column < s.L)


@triton.jit
def add_up(t, block, begin, end, shares, at, L, BLOCK_L: tl.constexpr, BLOCK_G: tl.constexpr):
    """Add up dweight and dbias for a block of columns: the shares from `begin` to `end` in order,
    many at a time. The result is stored from element `at` on."""
    column = block * BLOCK_L + tl.arange(0, BLOCK_L)
    zero = tl.zeros([BLOCK_G, BLOCK_L], t.partial.dtype.element_ty)
    dweight, dbias = zero, zero
    plane = shares.to(tl.int64) * L
    for first in range(begin, end, BLOCK_G):
        group = first + tl.arange(0, BLOCK_G).to(tl.int64)
        mask = (group < end)[:, None] & (column < L)[None, :]
        share = t.partial + group[:, None] * L + column[None, :]
        if t.dweight is not None:
            dweight += tl.load(share, mask=mask, other=0.0)
        if t.dbias is not None:
            dbias += tl.load(share + plane, mask=mask, other=0.0)
    store_gradient(t.dweight, at + column, column < L, tl.sum(dweight, axis=0))
    store_gradient(t.dbias, at + column, column < L, tl.sum(dbias, axis=0))


@triton.jit
def add_shares(
    t, program, groups, L, row_blocks, A, BLOCK_L: tl.constexpr, BLOCK_G: tl.constexpr
):  # fmt: skip
    """A program's block of columns of dweight and dbias. If parameters are grouped, A is not None,
    and each parameter row has such programs. `row_blocks` are the blocks behind the shares."""
    if A is None:
        add_up(t, program, 0, groups, groups, 0, L, BLOCK_L, BLOCK_G)
    else:
        slices = tl.cdiv(L, BLOCK_L)
        a = (program // slices).to(tl.int64)
        blocks = row_blocks // A
        begin = group_of(a * blocks, groups, row_blocks) + a
        end = group_of((a + 1) * blocks - 1, groups, row_blocks) + a + 1
        add_up(t, program % slices, begin, end, groups + A, a * L, L, BLOCK_L, BLOCK_G)


@triton.jit(do_not_specialize=["groups", "L", "row_blocks", "A"])
def add_shares_kernel(
    t, groups, L, row_blocks, A, ALIGN: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_G: tl.constexpr
):  # fmt: skip
    """dweight and dbias, a block of columns for each program: the same bits each time."""
    add_shares(t, tl.program_id(0), groups, L * ALIGN, row_blocks, A, BLOCK_L, BLOCK_G)
