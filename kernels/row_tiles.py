"""Rows of x, seen as (R, L): the place of a tile, and the loads into it.

A *tile* is a register block of BLOCK_R rows and BLOCK_L columns. Rows longer than that have several
*parts*. Missing elements are loaded as 0.

A tile's columns are split in two axes, (outer, rows, inner). So each warp takes its own rows, if
they are short enough, and sums along them stay in a warp. The order of the axes is that of
`arithmetic.py`.
"""

import triton
import triton.language as tl

from .activation import activate
from .arithmetic import accumulation_type, across, across_lanes, split_shape
from .row_types import Affine, Sizes, Stats, Tile
from .sync import keep_packed

# --- the place of a tile ---


@triton.jit
def columns(K: tl.constexpr):
    """The columns of a tile, counted from its first, along all axes but that of the rows."""
    outer = tl.arange(0, K.BLOCK_L // K.INNER) * K.INNER
    return across_lanes(outer) + tl.arange(0, K.INNER)[None, None, :]


@triton.jit
def sizes(R, L, parts, row_blocks, A, inner, K: tl.constexpr):
    """A kernel's Sizes from its arguments; L comes in multiples of ALIGN."""
    if K.PARAMETERS == "grouped":
        return Sizes(R, L * K.ALIGN, parts, A, inner, row_blocks // A)
    else:
        return Sizes(R, L * K.ALIGN, parts, 0, 0, 0)  # Triton 3.6 returns no None


@triton.jit
def grouped_rows(block, s, K: tl.constexpr):
    """The rows of a block, all with parameter row a = block // blocks; R for missing ones.

    Row r = (b A + a) inner + i is number b inner + i among the R / A rows of its a.
    """
    a = block // s.blocks
    number = (block - a * s.blocks) * K.BLOCK_R + tl.arange(0, K.BLOCK_R)
    b = number // s.inner
    row = (b.to(tl.int64) * s.A + a) * s.inner + (number - b * s.inner)
    return tl.where(number < s.R // s.A, row, s.R)


@triton.jit
def row_tile(block, start, s, K: tl.constexpr):
    """The tile of a block's rows whose first column is `start`."""
    if K.PARAMETERS == "grouped":
        row = across(grouped_rows(block, s, K))
    else:
        row = across(tl.full([], K.BLOCK_R, tl.int64) * block + tl.arange(0, K.BLOCK_R))
    if not K.WHOLE:
        mask = (row < s.R) & (columns(K) < s.L - start)
    elif K.BLOCK_R > 1:
        mask = row < s.R
    else:
        mask = tl.full(row.shape, True, tl.int1)
    return Tile(row, start, mask, row * s.L + start + columns(K))


@triton.jit
def load(ptr, tile):
    """A tile as it is stored."""
    return tl.load(ptr + tile.offsets, mask=tile.mask, other=0.0)


@triton.jit
def store(ptr, value, tile):
    tl.store(ptr + tile.offsets, value, mask=tile.mask)


@triton.jit
def only_present(value, tile, K: tl.constexpr):
    """0 in missing columns; missing rows are 0 anyway."""
    if K.WHOLE:
        return value
    else:
        return tl.where(tile.mask, value, 0.0)


@triton.jit
def stored_columns(ptr, a, start, default, s, K: tl.constexpr):
    """A parameter's slice of columns as it is stored, for each row of a tile; `default` in missing
    ones."""
    SHAPE: tl.constexpr = split_shape(K.BLOCK_L // K.INNER, K.BLOCK_R, K.INNER)
    column = tl.broadcast_to(columns(K), SHAPE)  # laid out as a tile is
    if K.PARAMETERS == "grouped":
        ptr += s.L.to(tl.int64) * a
    if K.WHOLE:
        return tl.load(ptr + start + column)
    else:
        return tl.load(ptr + start + column, mask=column < s.L - start, other=default)


@triton.jit
def stored_or_default(ptr, a, start, default, s, K: tl.constexpr):
    """The same; `default` everywhere if there is no parameter."""
    if ptr is None:
        SHAPE: tl.constexpr = split_shape(K.BLOCK_L // K.INNER, K.BLOCK_R, K.INNER)
        return tl.full(SHAPE, default, tl.float32)
    else:
        return stored_columns(ptr, a, start, default, s, K)


@triton.jit
def load_affine(t, a, start, s, K: tl.constexpr):
    """gamma and beta of a slice of columns, 1 and 0 if there are none. If they are grouped, those
    of parameter row `a`."""
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    gamma = stored_or_default(t.weight, a, start, 1.0, s, K).to(ACC)
    return Affine(gamma, stored_or_default(t.bias, a, start, 0.0, s, K).to(ACC))


@triton.jit
def kept_affine(t, a, start, s, K: tl.constexpr):
    """load_affine's, for many rows; if tiles stay PACKED, as they are stored."""
    if K.PACKED:
        gamma = stored_or_default(t.weight, a, start, 1.0, s, K)
        if K.ACTIVATION is None:  # nobody needs beta
            return Affine(gamma, stored_or_default(None, a, start, 0.0, s, K))
        else:
            return Affine(gamma, stored_or_default(t.bias, a, start, 0.0, s, K))
    else:
        return load_affine(t, a, start, s, K)


@triton.jit
def wide_affine(affine, K: tl.constexpr, ACC: tl.constexpr):
    """An Affine in the dtype of statistics, for one use if tiles stay PACKED."""
    if K.PACKED:
        return Affine(keep_packed(affine.gamma).to(ACC), keep_packed(affine.beta).to(ACC))
    else:
        return affine


@triton.jit
def load_own(ptr, default, tile, s, K: tl.constexpr, ACC: tl.constexpr):
    """A parameter of the tile's shape; `default` if there is none."""
    if ptr is None:
        SHAPE: tl.constexpr = split_shape(K.BLOCK_L // K.INNER, K.BLOCK_R, K.INNER)
        return tl.full(SHAPE, default, ACC)
    else:
        return load(ptr, tile).to(ACC)


@triton.jit
def own_affine(t, tile, s, K: tl.constexpr):
    """gamma and beta of a tile whose rows have their own."""
    ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
    gamma = load_own(t.weight, 1.0, tile, s, K, ACC)
    return Affine(gamma, load_own(t.bias, 0.0, tile, s, K, ACC))


@triton.jit
def affine_of(t, shared, block, start, tile, s, K: tl.constexpr):
    """gamma and beta of one tile: `shared` if all rows share them."""
    if K.PARAMETERS == "own":
        return own_affine(t, tile, s, K)
    elif K.PARAMETERS == "grouped":
        return load_affine(t, block // s.blocks, start, s, K)
    else:
        return shared


# --- the norm's input ---


@triton.jit
def silu_gate(gate, ACC: tl.constexpr):
    return activate(gate.to(ACC), "silu", 0.0)


@triton.jit
def load_gate(t, x, tile):
    """The gate; without one, x, which is then not used."""
    if t.gate is not None:
        return load(t.gate, tile)
    else:
        return x


@triton.jit
def gated_input(t, x, gate, K: tl.constexpr):
    """The norm's input, from x and the loaded gate."""
    if K.GATE == "before":
        ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
        return x.to(ACC) * silu_gate(gate, ACC)
    else:
        return x


@triton.jit
def with_gate(t, x, tile, K: tl.constexpr):
    """The norm's input; loads the gate."""
    if K.GATE == "before":
        return gated_input(t, x, load(t.gate, tile), K)
    else:
        return x


@triton.jit
def load_sum(t, tile, K: tl.constexpr):
    """The norm's input: x, x silu(gate), or x + addend rounded as x is; that sum is returned."""
    x = load(t.x, tile)
    if t.addend is not None:
        ACC: tl.constexpr = accumulation_type(t.x.dtype.element_ty)
        x = (x.to(ACC) + load(t.addend, tile).to(ACC)).to(x.dtype)
        store(t.total, x, tile)
    return with_gate(t, x, tile, K)


@triton.jit
def part_count(start, s, K: tl.constexpr, ACC: tl.constexpr):
    """The columns of a part, for each row."""
    count = tl.minimum(s.L - start, K.BLOCK_L).to(ACC)
    return across(tl.full([K.BLOCK_R], 0.0, ACC)) + count


@triton.jit
def load_stats(stats_ptr, tile, s, K: tl.constexpr):
    """The values that store_stats has left; missing rows have 0."""
    rstd = tl.load(stats_ptr + tile.row, mask=tile.row < s.R, other=0.0)
    if K.CENTRED:
        return Stats(tl.load(stats_ptr + s.R + tile.row, mask=tile.row < s.R, other=0.0), rstd)
    else:
        return Stats(tl.zeros_like(rstd), rstd)


@triton.jit
def store_stats(stats_ptr, stats, tile, mask, s, K: tl.constexpr):
    tl.store(stats_ptr + tile.row, stats.rstd, mask=mask)
    if K.CENTRED:
        tl.store(stats_ptr + s.R + tile.row, stats.mean, mask=mask)
