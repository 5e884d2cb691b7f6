"""The forward of layer and RMS norm in one launch, for rows that need several tiles: a program
keeps all tiles of its row in registers, and weight and bias too.

All of these have 16 bits, and stay as they are stored; each walk over them widens them again.
Threads sum over all tiles first, and the program once. The next rows are on their way meanwhile.
"""

import triton
import triton.language as tl

from .arithmetic import centred, inverse_std, split_shape
from .row_outputs import store_output
from .row_sums import sum_along, sums_along
from .row_tiles import load_sum, row_tile, sizes, store_stats, stored_columns
from .row_types import SIZES, Affine, Stats, Tile
from .sync import XOR_ZERO, keep_packed, widen


@triton.jit(do_not_specialize=SIZES)
def several_tiles_row_kernel(
    t, eps: tl.float64, R, L, row_blocks, parts, groups, A, inner, K: tl.constexpr
):
    """y and the statistics of each row; `groups` programs take rows in turns."""
    TILES: tl.constexpr = K.TILES  # Triton 3.6 calls nothing with a bare K.NAME
    s = sizes(R, L, parts, row_blocks, A, inner, K)
    gammas, betas = stored_tiles(t.weight, s, K), stored_tiles(t.bias, s, K)
    for row in tl.range(tl.program_id(0), s.R, groups, num_stages=K.STAGES):
        tiles = ()
        for i in tl.static_range(TILES):
            # Triton knows no starred expressions.
            tiles = tiles + (load_sum(t, part_tile(row, i, s, K), K),)  # type: ignore[assignment]  # noqa: RUF005
        mean, m2 = moments_of_tiles(tiles, row, s, K)
        stats = Stats(mean, inverse_std(m2 / s.L, eps))
        for i in tl.static_range(TILES):
            tile = part_tile(row, i, s, K)
            affine = Affine(widened(gammas, 1.0, i, tile), widened(betas, 0.0, i, tile))
            store_output(t, widen(keep_packed(tiles[i]), tl.float32), stats, affine, tile, s, K)
        store_stats(t.stats, stats, part_tile(row, 0, s, K), True, s, K)


@triton.jit
def part_tile(row, i: tl.constexpr, s, K: tl.constexpr):
    """The i-th tile of a row. Only the last one can lack columns."""
    LAST: tl.constexpr = i == K.TILES - 1
    tile = row_tile(row, tl.full([], i * K.BLOCK_L, tl.int32), s, K)
    if not LAST:
        tile = Tile(tile.row, tile.start, tl.full(tile.mask.shape, True, tl.int1), tile.offsets)
    return tile


@triton.jit
def moments_of_tiles(tiles, row, s, K: tl.constexpr):
    """(mean, M2) of a row: as `row_sums.row_moments`, for a row in several tiles."""
    TILES: tl.constexpr = K.TILES
    nothing = tl.zeros(split_shape(K.BLOCK_L // K.INNER, 1, K.INNER), tl.float32)
    squares = nothing
    if K.CENTRED:
        total, count = nothing, s.L.to(tl.float32)
        for i in tl.static_range(TILES):
            total += widen(tiles[i], tl.float32) * (1.0 / count)
        mean = sum_along(total)
        total = nothing
        for i in tl.static_range(TILES):
            # A MOVE would not do: the assembler would keep what it knows from the first walk.
            x = widen(keep_packed(tiles[i], XOR_ZERO), tl.float32)
            deviation = tl.where(part_tile(row, i, s, K).mask, x - mean, 0.0)
            total += deviation
            squares += deviation * deviation
        total, squares = sums_along(total, squares)
        return centred(mean, total, squares, count)
    else:
        for i in tl.static_range(TILES):
            x = widen(tiles[i], tl.float32)
            squares += x * x
        m2 = sum_along(squares)
        return tl.zeros_like(m2), m2


@triton.jit
def stored_tiles(ptr, s, K: tl.constexpr):
    """A parameter's tiles; none if there is no parameter."""
    TILES: tl.constexpr = K.TILES
    tiles = ()
    if ptr is not None:
        for i in tl.static_range(TILES):
            tiles = tiles + (stored_columns(ptr, 0, i * K.BLOCK_L, 0.0, s, K),)  # type: ignore[assignment]  # noqa: RUF005
    return tiles


@triton.jit
def widened(tiles, default, i: tl.constexpr, tile):
    """A parameter's i-th tile; `default` if there is no parameter."""
    if len(tiles) > 0:
        return widen(keep_packed(tiles[i]), tl.float32)
    else:
        return tl.full(tile.offsets.shape, default, tl.float32)
