"""Which programs read which rows: tiles of BLOCK_R rows and BLOCK_L columns, and how many at a
time."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import triton

from fastnorm.activations import parsed

from . import launch, tiers, tilings
from .geometry import alignment
from .row_types import Backward, Choices

# More bytes of a row's x, dy and gate than this take 32 warps, and no loads are on their way
# meanwhile: spills stay in the L1 cache only if shared memory leaves it the room.
MANY_BYTES = 64 * 1024
MANY_WARPS = 32
PACKED = 32  # elements a thread: from so many on, a backward keeps tiles of 16 bits as they are
# Elements of a tile for each warp, by x's bytes an element: a thread keeps them in float32.
WARP_TILE = {2: 1024, 4: 512, 8: 512}
BACKWARD_WARP_TILE = 512
GATED_WARP_TILE = 256  # backward; it has a third tensor
MOST_WARPS = 16
# Warps on an SM, for kernels that keep their tile. Fewer if threads keep 32 elements: gamma and
# beta of 16 bits are then in float32.
WARPS_AN_SM = 16
FEW_WARPS_AN_SM = 12
SM_REGISTERS = 65536
STAGES = 3  # of loops over rows: two tiles are loaded while one is worked on
SHARED_FOR_SUMS = 16 * 1024  # bytes besides the tiles that are being loaded
# Rows in several tiles, for 16 warps.
TILE_OF_SEVERAL = 4096
MOST_OF_FEW_PARTS = 64  # of a row; the launch that reads sums of more cannot load ahead
# For passes that keep only parameters: elements of a tile, in 4 warps.
TILE = 2048
# For passes that keep only sums: forward in 4 warps, backward in 16.
REDUCING_TILE = (4096, 8192)
REDUCING_STAGES = (3, 4)
# Columns whose shares of a gradient one program adds up, and how many shares at a time. A launch
# that only adds needs many programs for short rows. The programs of another launch that add beside
# its work are few. If parameters are grouped, each has few shares.
SHORT_ROW = 4096
SHARES_SHORT, SHARES_LONG, SHARES_BESIDE = (8, 512), (16, 256), (32, 128)
SHARES_GROUPED = (128, 16)


class RowSpec(NamedTuple):
    """The inputs of a plan besides sizes and dtypes."""

    norm: str
    activation: str | None = None
    gate: str | None = None  # as in Choices
    # The rows A of weight and bias, and inner: row r takes row (r // inner) % A.
    parameter_rows: int = 1
    inner: int = 1

    @property
    def planes(self) -> int:
        """Statistics kept for each row, and sums taken by its backward: one if there is no mean."""
        return 2 if self.norm == "layer" else 1

    def with_parameters(
        self, shape: Sequence[int], x_shape: Sequence[int], normalized_ndim: int
    ) -> "RowSpec":
        """The same with parameters of this shape, with x's dimensions (`fastnorm.kernels.rows`)."""
        leading = shape[: len(shape) - normalized_ndim]
        several = [i for i, size in enumerate(leading) if size != 1]
        if not several:
            return self
        behind = x_shape[several[-1] + 1 : len(leading)]
        return self._replace(parameter_rows=math.prod(leading), inner=math.prod(behind))

    def without_parameters(self) -> "RowSpec":
        return self._replace(parameter_rows=1, inner=1)

    def sums_both(self, t: Backward) -> bool:
        """Whether a backward has sums of columns for dbias too, as `add_to_shares` has them."""
        return self.norm == "layer" or t.dbias is not None

    def parameters(self, R: int) -> str:
        """How the parameters go with R rows, as in Choices."""
        if self.parameter_rows == 1:
            return "shared"
        return "own" if self.parameter_rows == R else "grouped"


class Room(NamedTuple):
    """The most elements of a row that a program keeps; 0 if it keeps none so."""

    any: int  # in one tile
    whole: int = 0  # in one tile, rows of just this length
    tiles: int = 0  # in several tiles

    def holds(self, L: int) -> bool:
        """Whether rows of L elements have room in one tile."""
        return self.any >= L or self.whole == L


class RowGeometry(NamedTuple):
    """(R, L) as units of BLOCK_R rows; their members take slices of BLOCK_L columns."""

    R: int
    L: int
    BLOCK_R: int
    BLOCK_L: int
    itemsize: int  # of x
    num_warps: int
    at_once: int = 1  # programs that an SM has at a time, if they take rows in turns
    stages: int = 1
    tiles: int = 1  # of a row, that one program keeps
    packed: bool = False  # a backward's tiles of 16 bits stay as they are stored between two uses
    grouped: tuple[int, int] | None = None  # (A, inner) of grouped parameters

    @property
    def units(self) -> int:
        """Blocks of rows; if parameters are grouped, the blocks of each parameter row."""
        A = self.parameter_rows
        return A * triton.cdiv(self.R // A, self.BLOCK_R)

    @property
    def members(self) -> int:
        return triton.cdiv(self.L, self.BLOCK_L)

    @property
    def registers(self) -> int:
        """The most registers that a thread may have so that this many programs fit."""
        return min(SM_REGISTERS // (32 * self.num_warps * self.at_once) // 8 * 8, 255)

    def scalars(self, groups: int) -> tuple[int | None, ...]:
        """The sizes, in the kernels' order; L divided by ALIGN."""
        L = self.L // alignment(self.L)
        return self.R, L, self.units, self.members, groups, *self.parameter_scalars

    @property
    def parameter_rows(self) -> int:
        """Parameter rows that programs take in turns: 1 if rows share them or have their own."""
        return self.grouped[0] if self.grouped else 1

    @property
    def parameter_scalars(self) -> tuple[int | None, int | None]:
        """A and inner."""
        return self.grouped or (None, None)

    def shares(self, groups: int) -> int:
        """The shares of the parameters' gradients that this many groups of programs leave."""
        return groups + self.grouped[0] if self.grouped else groups

    def for_parameters(self, spec: RowSpec) -> "RowGeometry":
        """The same with blocks of rows that have the same parameters."""
        if spec.parameters(self.R) != "grouped":
            return self
        most = self.R // spec.parameter_rows  # rows that a block can have
        BLOCK_R = _as_needed(self.BLOCK_R, most) if launch.INTERPRETED else self.BLOCK_R
        return self._replace(BLOCK_R=BLOCK_R, grouped=(spec.parameter_rows, spec.inner))

    def pipelined(self, bytes_: int, shared: int) -> "RowGeometry":
        """The same with as many stages as an SM's shared memory allows. A turn of a program loads
        `bytes_` for each element of its tiles; each stage but the first needs room for that."""
        turn = self.BLOCK_R * self.BLOCK_L * self.tiles * bytes_
        room = (shared - SHARED_FOR_SUMS) // self.at_once // turn
        return self._replace(stages=min(self.stages, 1 + room))

    def kept_packed(self, spills: bool) -> "RowGeometry":
        """The same for a backward; tiles of 16 bits stay packed if threads have many elements. If
        it `spills` nevertheless, no loads are on their way: the L1 cache needs the room."""
        if self.itemsize != 2 or self.BLOCK_L < PACKED * 32 * self.num_warps:
            return self
        return self._replace(packed=True, stages=1 if spills else self.stages)

    @property
    def _inner(self) -> int:
        """Columns of a tile's inner axis: as many as a warp loads at once, or a whole row."""
        return self.BLOCK_L if self.BLOCK_R == 1 else min(self.BLOCK_L, 512 // self.itemsize)

    def choices(self, spec: RowSpec) -> Choices:
        name, parameter = parsed(spec.activation)
        return Choices(
            CENTRED=spec.norm == "layer",
            ACTIVATION=name or None,
            PARAMETER=parameter,
            ALIGN=alignment(self.L),
            WHOLE=self.L % self.BLOCK_L == 0,
            BLOCK_R=self.BLOCK_R,
            BLOCK_L=self.BLOCK_L,
            INNER=self._inner,
            STAGES=self.stages,
            TILES=self.tiles,
            PACKED=self.packed,
            PARAMETERS=spec.parameters(self.R),
            GATE=spec.gate,
        )


def choose(
    R: int,
    L: int,
    itemsize: int,
    backward: bool,
    state: tiers.State,
    room: Room,
    gated: bool = False,
) -> tuple[str, RowGeometry]:
    """The tier for rows of L elements and its geometry.

    one_program   rows for which a program has `room`
    streaming     any
    """

    def of_one_program() -> RowGeometry | None:
        if room.holds(L):
            return _one_program(R, L, itemsize, backward, gated)
        return _several_tiles(R, L, itemsize) if room.tiles >= L else None

    return tiers.first_with_room(
        state,
        {
            "one_program": of_one_program,
            "streaming": lambda: reducing(R, L, itemsize, backward),
        },
        f"{R} rows of {L} elements",
    )


def reducing(R: int, L: int, itemsize: int, backward: bool) -> RowGeometry:
    """For the first of two launches, which keeps only sums, and for weight norm."""
    tile = REDUCING_TILE[backward]
    BLOCK_L = min(_padded(L), tile)
    warps, at_once = (16, 1) if backward else (4, 4)
    rows = _rows(R, tile, BLOCK_L)
    return RowGeometry(R, L, rows, BLOCK_L, itemsize, warps, at_once, REDUCING_STAGES[backward])


def pointwise(R: int, L: int, itemsize: int) -> RowGeometry:
    """For the second launch, which keeps only the parameters of its columns."""
    BLOCK_L = min(_padded(L), TILE)
    return RowGeometry(R, L, _rows(R, TILE, BLOCK_L), BLOCK_L, itemsize, 4, 4, STAGES)


def _one_program(R: int, L: int, itemsize: int, backward: bool, gated: bool) -> RowGeometry:
    BLOCK_L = _padded(L)
    if BLOCK_L * itemsize * (1 + backward + gated) > MANY_BYTES:
        return RowGeometry(R, L, _rows(R, BLOCK_L, BLOCK_L), BLOCK_L, itemsize, MANY_WARPS)
    gated_or_not = GATED_WARP_TILE if gated else BACKWARD_WARP_TILE
    warp_tile = gated_or_not if backward else WARP_TILE[itemsize]
    least = 8 if backward else 1  # if rows leave shares of gradients: few programs
    warps = min(max(BLOCK_L // warp_tile, least), MOST_WARPS)
    few = itemsize == 2 and not backward and warps <= 4
    at_once = (FEW_WARPS_AN_SM if few else WARPS_AN_SM) // warps
    rows = _rows(R, warps * warp_tile, BLOCK_L)
    return RowGeometry(R, L, rows, BLOCK_L, itemsize, warps, at_once, STAGES)


def _several_tiles(R: int, L: int, itemsize: int) -> RowGeometry:
    tiles = triton.cdiv(L, TILE_OF_SEVERAL)
    return RowGeometry(R, L, 1, TILE_OF_SEVERAL, itemsize, MOST_WARPS, 1, STAGES, tiles)


def _padded(L: int) -> int:
    return max(triton.next_power_of_2(L), 8)


def _rows(R: int, tile: int, BLOCK_L: int) -> int:
    """Rows of a tile. In the interpreter many, as a program costs more than an element; for few
    rows 2. How columns are split depends only on L, so a row's bits do not depend on R."""
    if launch.INTERPRETED:
        return _as_needed(tilings.INTERPRETER_TILE // BLOCK_L, R)
    return max(tile // BLOCK_L, 1)


def _as_needed(BLOCK_R: int, R: int) -> int:
    """Rows of a tile: about as many as R needs, at least 2."""
    return min(BLOCK_R, max(triton.next_power_of_2(R), 2))
