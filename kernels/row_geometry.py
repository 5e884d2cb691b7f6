"""Which programs read what of rows: slices of BLOCK_L columns, blocks of BLOCK_R rows."""

from typing import Any, NamedTuple

import triton

from . import launch, tiers, tilings
from .geometry import alignment

# Elements of a row that one program keeps: forward x, backward x, dy and two sums of columns.
LONGEST_ROW = 16384
LONGEST_ROW_BACKWARD = 8192
# Elements of a tile: forward 32 a thread, backward 16 in 16 warps.
TILE = 4096
BACKWARD_TILE = 8192
# A cluster's slice of a row: backward shorter, for the sums of columns that stay in registers too.
SLICE = 8192
BACKWARD_SLICE = 4096
PARAMETERS_L = 64  # columns whose partial sums one program adds up
# A limit for kernels that keep their tile, or two and sums of columns: 16 warps fill an SM.
REGISTERS = 128


class RowGeometry(NamedTuple):
    """(R, L) as units of BLOCK_R rows, whose members take slices of BLOCK_L columns."""

    R: int
    L: int
    BLOCK_R: int
    BLOCK_L: int
    num_warps: int

    @property
    def units(self) -> int:
        return triton.cdiv(self.R, self.BLOCK_R)

    @property
    def members(self) -> int:
        return triton.cdiv(self.L, self.BLOCK_L)

    @property
    def sizes(self) -> tuple[int, int]:
        """R, and L in multiples of ALIGN."""
        return self.R, self.L // alignment(self.L)

    def scalars(self, clusters: int) -> tuple[int, ...]:
        """The sizes, in the resident kernels' order."""
        return *self.sizes, self.units, self.members, clusters

    def constants(self) -> dict[str, Any]:
        return {"ALIGN": alignment(self.L), "BLOCK_R": self.BLOCK_R, "BLOCK_L": self.BLOCK_L}


def choose(R: int, L: int, backward: bool, state: tiers.State) -> tuple[str, RowGeometry]:
    """The tier for rows of L elements and its geometry.

    one_program   rows up to 16,384 elements, backward 8,192
    cluster       rows up to 264 slices, of 8,192 elements, backward 4,096
    streaming     any
    """
    return tiers.first_with_room(
        state,
        {
            "one_program": lambda: _one_program(R, L, backward),
            "cluster": lambda: _cluster(R, L, backward),
            "streaming": lambda: streaming(R, L, backward),
        },
        f"{R} rows of {L} elements",
    )


def streaming(R: int, L: int, backward: bool) -> RowGeometry:
    tile = BACKWARD_TILE if backward else TILE
    BLOCK_L = min(_padded(L), tile)
    return RowGeometry(R, L, _rows(R, tile, BLOCK_L), BLOCK_L, 16 if backward else 4)


def _one_program(R: int, L: int, backward: bool) -> RowGeometry | None:
    BLOCK_L = _padded(L)
    if BLOCK_L > (LONGEST_ROW_BACKWARD if backward else LONGEST_ROW):
        return None
    tile = BACKWARD_TILE if backward else max(TILE, BLOCK_L)
    return RowGeometry(R, L, _rows(R, tile, BLOCK_L), BLOCK_L, 16 if backward else tile // 1024)


def _cluster(R: int, L: int, backward: bool) -> RowGeometry | None:
    slice_ = BACKWARD_SLICE if backward else SLICE
    BLOCK_L = min(_padded(L), slice_)
    BLOCK_R = _rows(R, BACKWARD_TILE if backward else slice_, BLOCK_L)
    found = RowGeometry(R, L, BLOCK_R, BLOCK_L, 16 if backward else 8)
    return found if found.members <= tilings.MOST_MEMBERS else None


def _padded(L: int) -> int:
    return max(triton.next_power_of_2(L), 8)


def _rows(R: int, tile: int, BLOCK_L: int) -> int:
    """Rows of a tile; in the interpreter, where a program costs more than an element, many."""
    if launch.INTERPRETED:
        return min(tilings.INTERPRETER_TILE // BLOCK_L, triton.next_power_of_2(R))
    return tile // BLOCK_L
