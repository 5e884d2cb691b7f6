"""Who takes which blocks of rows, and the shares of dweight and dbias that they leave.

Groups of programs take blocks in turns. Where parameters are grouped, the blocks are in the order
of the parameter rows a, and each group has a run of them, no two differ by more than a block. It
loads gamma and beta for each a that it meets, and leaves one of groups + A shares for it: number
group + a, which grows from one group to the next, and from one a to the next. So the shares of an a
are neighbours, and are added in the order of the groups.
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
    """The part of a run, (first, end), that is of parameter row a."""
    return tl.maximum(begin, a * s.blocks), tl.minimum(stop, (a + 1) * s.blocks)


@triton.jit
def group_of(block, groups, row_blocks):
    """The group in whose run a block is."""
    return ((block + 1) * groups - 1) // row_blocks


@triton.jit
def add_to_shares(t, dweight, dbias, g, x_hat, K: tl.constexpr):
    """A tile's part of dweight and dbias, for each of its rows, added to that of others.

    RMS norm's bias has a gradient where rows are shifted; layer norm, which mostly has a bias, is
    not compiled anew where nobody asks for its gradient.
    """
    wide = g.to(x_hat.dtype)
    dweight += wide * x_hat
    if K.CENTRED or t.dbias is not None:
        dbias += wide
    return dweight, dbias


@triton.jit
def store_shares(t, dweight, dbias, start, share, shares, s, K: tl.constexpr):
    """A share of dweight and dbias into (2, shares, L), without a bias (shares, L)."""
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
    """dweight and dbias of a block of columns, the shares from `begin` to `end` added in order,
    many at a time; to be stored from element `at` on."""
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
    """A program's block of columns of dweight and dbias; where they are grouped, A is not None,
    each of their rows has such programs. `row_blocks` are those that the shares are of."""
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
    """dweight and dbias, a block of columns a program: the same bits each time."""
    add_shares(t, tl.program_id(0), groups, L * ALIGN, row_blocks, A, BLOCK_L, BLOCK_G)
