"""Which programs read what: units, tiles and pieces of a tensor seen as (N, C, S).

The terms are those of `tiles.py`. Nothing that the compiler sees as a constant follows from the
batch size: a tile has room for some instances, and a larger batch takes the next larger tile, the
next tier, or more programs.
"""

import math
from typing import Any, NamedTuple

import torch
import triton

from . import launch

# Elements of a tile that a program keeps where it holds whole sets, and its warps.
ONE_PROGRAM_TILES = {2048: 4, 4096: 4, 8192: 8, 16384: 16}
# The same where each element is loaded by an address of its own: 8 a thread.
UNALIGNED_TILES = {1024: 4}
# Bytes of a tile that a member of a cluster keeps in 8 warps, two of which share an SM; half as
# much where lanes or a residual need registers too, a quarter where the lanes differ in statistics.
CLUSTER_TILE_BYTES = 32768
# Lanes of a contiguous member's tile: the statistics of more would leave it no registers.
CLUSTER_LANES = 8
# Members of a cluster, two for each of 132 SMs: beyond, no GPU of today holds one.
MOST_MEMBERS = 264
# Elements of a tile that is read and left behind: 4 warps.
STREAMING_TILE = 4096
# Programs that a pass is split into when its units alone are too few: 3 for each of 132 SMs.
ENOUGH_PROGRAMS = 396
# In the interpreter a program costs milliseconds and an element nanoseconds: few, large tiles.
INTERPRETER_TILE = 1 << 18
# Channels of units with several sets in one tile.
MOST_LANES = 256
# Sets that share a tile, told apart by comparing each channel with each set.
MOST_SETS = 32
WIDEST_ROW = 1024  # positions of a tile's row where there are several rows


class View(NamedTuple):
    """A tensor seen as (N, C, S), contiguous or with its channels last in memory (N, S, C)."""

    N: int
    C: int
    S: int
    channels_last: bool
    itemsize: int


class Sets(NamedTuple):
    """What statistics are taken over: `depth` channels of one instance or, `batch`, of all.

    `mix` adds those of each instance to those of the batch.
    """

    depth: int
    batch: bool
    mix: bool


class Geometry(NamedTuple):
    """Units of W channels, tiles of BLOCK_N x BLOCK_C x BLOCK_S, `pieces` of `steps` tiles."""

    view: View
    sets: Sets
    W: int
    SETS: int
    BLOCK_N: int
    BLOCK_C: int
    BLOCK_S: int
    pieces: int
    steps: int
    num_warps: int

    @property
    def u_blocks(self) -> int:
        return triton.cdiv(self.view.C, self.W)

    @property
    def units(self) -> int:
        return self.u_blocks * (1 if self.sets.batch else self.view.N)

    @property
    def members(self) -> int:
        return triton.cdiv(self.W, self.BLOCK_C) * self.pieces

    @property
    def resident_registers(self) -> int:
        """A limit for kernels that keep their tile: 16 warps an SM, fewer for many short lanes.

        Without one the assembler takes up to 255 registers a thread, which leaves too few warps to
        keep the memory busy, or spills below a limit of its own.
        """
        return 168 if self._short and self.num_warps == 4 else 128

    @property
    def reducing_registers(self) -> int:
        """A limit for kernels that read a tile and leave it behind: 12 to 20 warps an SM."""
        if self._short or self.view.channels_last:
            return 168
        return 128 if self.sets.mix else 96

    def pointwise_registers(self, has_residual: bool) -> int | None:
        """A limit for passes without sums, which spill only with a residual, or none."""
        if not has_residual:
            return None
        if self._short and self.sets.mix:
            return 232
        return 168 if self._short else 128

    @property
    def _short(self) -> bool:
        """Many short lanes: a thread keeps the statistics of several."""
        return not self.view.channels_last and self.BLOCK_N * self.BLOCK_C >= 16

    def scalars(self, clusters: int) -> tuple[int, ...]:
        """The sizes, in the kernels' order, the contiguous axis in multiples of ALIGN."""
        N, C, S, channels_last, _ = self.view
        align, align_w = self._alignment()
        return (
            N,
            C // align if channels_last else C,
            S if channels_last else S // align,
            self.sets.depth,
            self.W // align_w,
            self.u_blocks,
            triton.cdiv(self.W, self.BLOCK_C),
            triton.cdiv(S, self.BLOCK_S),
            self.pieces,
            self.steps,
            self.units,
            clusters,
        )

    def constants(self) -> dict[str, Any]:
        align, align_w = self._alignment()
        return {
            "CHANNELS_LAST": self.view.channels_last,
            "ALIGN": align,
            "ALIGN_W": align_w,
            "SETS": self.SETS,
            "BLOCK_N": self.BLOCK_N,
            "BLOCK_C": self.BLOCK_C,
            "BLOCK_S": self.BLOCK_S,
        }

    def _alignment(self) -> tuple[int, int]:
        axis = self.view.C if self.view.channels_last else self.view.S
        return alignment(axis), alignment(self.W)


def alignment(size: int) -> int:
    """The power of two, up to 16, by which kernels get a size divided: it then fits 32 bits and is
    multiplied again in 32 bits, or it is passed whole, in 64."""
    return math.gcd(size, 16) if size < 2**31 else 1


def view_of(shape: torch.Size, contiguous: bool, itemsize: int, merge_batch: bool) -> View:
    """The (N, C, S) view of a tensor of rank >= 2, contiguous or with its channels last.

    Where nothing but the batch's statistics is wanted (`merge_batch`) and the channels lie last in
    memory, N and S are one axis: (N, C) and NHWC inputs become one long instance.
    """
    N, C = shape[:2]
    S = math.prod(shape[2:])
    channels_last = not contiguous or S == 1
    if merge_batch and channels_last:
        N, S = 1, N * S
    return View(N, C, S, channels_last, itemsize)


def one_program(view: View, sets: Sets) -> Geometry | None:
    """Units that one program holds whole, or None where sets are too large for it."""
    tiles = {INTERPRETER_TILE: 4} if launch.INTERPRETED else ONE_PROGRAM_TILES
    for tile, warps in (UNALIGNED_TILES if _each_addressed(view) else tiles).items():
        blocks = _whole_sets(view, sets, tile)
        if blocks is not None:
            W, BLOCK_N, BLOCK_C, BLOCK_S = blocks
            return Geometry(view, sets, W, _sets(W, sets), BLOCK_N, BLOCK_C, BLOCK_S, 1, 1, warps)
    return None


def cluster(view: View, sets: Sets, has_residual: bool) -> Geometry | None:
    """Units whose members hold a tile each, or None where a unit has more than MOST_MEMBERS."""
    tile = CLUSTER_TILE_BYTES // view.itemsize
    if sets.mix or view.channels_last:
        tile //= 4
    elif has_residual or sets.depth > 1:
        tile //= 2
    tile = INTERPRETER_TILE if launch.INTERPRETED else tile
    for lanes in (64, 32, 16) if view.channels_last else (1,):
        blocks = _parts_of_sets(view, sets, tile, lanes)
        if blocks is None:
            continue
        W, BLOCK_N, BLOCK_C, BLOCK_S = blocks
        if view.channels_last and W < view.C and W % 8:
            return None  # its members would write into each other's bytes of the ReLU mask
        pieces = _tiles(view, sets, BLOCK_N, BLOCK_S)
        found = Geometry(view, sets, W, _sets(W, sets), BLOCK_N, BLOCK_C, BLOCK_S, pieces, 1, 8)
        if found.members <= MOST_MEMBERS:
            return found
    return None


def streaming(view: View, sets: Sets) -> Geometry:
    """Units in pieces, as few as keep the GPU busy; the mixture is streamed by its instances."""
    sets = Sets(sets.depth, sets.batch and not sets.mix, sets.mix)
    tile = INTERPRETER_TILE if launch.INTERPRETED else STREAMING_TILE
    tile = tile // 4 if _each_addressed(view) else tile
    blocks = _parts_of_sets(view, sets, tile, 64)
    assert blocks is not None, "only mixtures over the batch ask for whole instances"
    W, BLOCK_N, BLOCK_C, BLOCK_S = blocks
    tiles = _tiles(view, sets, BLOCK_N, BLOCK_S)
    whole = Geometry(view, sets, W, _sets(W, sets), BLOCK_N, BLOCK_C, BLOCK_S, 1, tiles, 4)
    wanted = 1 if launch.INTERPRETED else triton.cdiv(ENOUGH_PROGRAMS, whole.units * whole.members)
    steps = triton.cdiv(tiles, min(wanted, tiles))
    return whole._replace(pieces=triton.cdiv(tiles, steps), steps=steps)


def pointwise(view: View, sets: Sets) -> Geometry:
    """One tile a program, in the order of memory, whatever the sets."""
    tile = INTERPRETER_TILE if launch.INTERPRETED else STREAMING_TILE
    tile = tile // 4 if _each_addressed(view) else tile
    anywhere = Sets(1, False, sets.mix)
    blocks = _parts_of_sets(view, anywhere, tile, 64)
    assert blocks is not None
    _, _, BLOCK_C, BLOCK_S = blocks
    pieces = triton.cdiv(view.S, BLOCK_S)
    return Geometry(view, sets._replace(batch=False), BLOCK_C, 0, 1, BLOCK_C, BLOCK_S, pieces, 1, 4)


Blocks = tuple[int, int, int, int]  # W, BLOCK_N, BLOCK_C, BLOCK_S


def _whole_sets(view: View, sets: Sets, tile: int) -> Blocks | None:
    """A tile that holds whole sets, as many as it has room for; None where it holds none."""
    N, C, S, channels_last, itemsize = view
    BLOCK_S = max(triton.next_power_of_2(S), 8)
    if sets.batch:
        for lanes in (64, 32, 16) if channels_last else (_channels_at_once(view, tile, BLOCK_S),):
            BLOCK_C = min(lanes, max(triton.next_power_of_2(C), 8))
            if channels_last and not sets.mix:  # N and S are one axis
                BLOCK_S = _room(tile // BLOCK_C, S)
            BLOCK_N = tile // (BLOCK_C * BLOCK_S)
            if BLOCK_S >= S and BLOCK_N >= N:
                return BLOCK_C, _room(BLOCK_N, N), BLOCK_C, BLOCK_S
        return None
    depth = sets.depth
    most = min(tile // BLOCK_S // depth, C // depth, 64 if depth == 1 else MOST_SETS)
    if channels_last and most < C // depth:
        most -= most % _byte_groups(depth)
        if most * depth * itemsize < 32:  # less than a sector of memory in one piece
            return None
    if most == 0:
        return None
    BLOCK_C = max(triton.next_power_of_2(most * depth), 8 if channels_last else 1)
    return (most * depth, 1, BLOCK_C, BLOCK_S) if BLOCK_C * BLOCK_S <= tile else None


def _parts_of_sets(view: View, sets: Sets, tile: int, lanes: int) -> Blocks | None:
    """A tile of one set, or of neighbouring ones: up to about `lanes` channels.

    None only for a mixture over the batch, of which a tile has to hold whole instances.
    """
    _, C, S, channels_last, _ = view
    depth, whole = sets.depth, max(triton.next_power_of_2(S), 8)
    if channels_last:
        W = depth if depth > 1 else min(lanes, max(triton.next_power_of_2(C), 8))
        if depth > 1:  # whole groups, and whole bytes of the ReLU mask
            together = _byte_groups(depth)
            W = min(together * triton.cdiv(lanes, together * depth) * depth, C)
            W = depth if W > max(MOST_LANES, depth) else W  # rather one group, in row blocks
        BLOCK_C = max(triton.next_power_of_2(W), 8)
        if W == depth:
            BLOCK_C = min(BLOCK_C, max(lanes, 8))
        room = tile // BLOCK_C
        BLOCK_S = room if sets.batch and not launch.INTERPRETED else min(room, whole)
        if sets.batch and sets.mix:
            if whole > room:
                return None
            return W, _room(room // whole, view.N), BLOCK_C, whole
        return W, 1, BLOCK_C, BLOCK_S
    BLOCK_S = min(whole, tile if launch.INTERPRETED else WIDEST_ROW)
    if lanes == 1 and not launch.INTERPRETED:  # a cluster's
        tile = min(tile, CLUSTER_LANES * BLOCK_S)
    if sets.batch:
        if sets.mix:
            BLOCK_S = whole
        if BLOCK_S > tile:
            return None
        BLOCK_C = _channels_at_once(view, tile, BLOCK_S)
        return BLOCK_C, _room(tile // BLOCK_S // BLOCK_C, view.N), BLOCK_C, BLOCK_S
    rows = triton.next_power_of_2(depth) if depth > 1 else min(lanes, triton.next_power_of_2(C))
    BLOCK_C = min(tile // BLOCK_S, rows)
    return depth if depth > 1 else BLOCK_C, 1, BLOCK_C, min(whole, tile // BLOCK_C)


def _channels_at_once(view: View, tile: int, BLOCK_S: int) -> int:
    """Channels of a contiguous tile over the batch: one, but in the interpreter many."""
    if not launch.INTERPRETED:
        return 1
    room = max(tile // (BLOCK_S * triton.next_power_of_2(view.N)), 1)
    return min(room, triton.next_power_of_2(view.C))


def _room(room: int, needed: int) -> int:
    """`room`, whatever is needed of it: on a GPU a smaller one would be compiled anew."""
    return min(room, triton.next_power_of_2(needed)) if launch.INTERPRETED else room


def _byte_groups(depth: int) -> int:
    """How many sets of `depth` channels make up whole bytes of a bit for each channel."""
    return 8 // math.gcd(depth, 8)


def _each_addressed(view: View) -> bool:
    """Whether elements are loaded one by one, each by an address that takes registers too."""
    axis = view.C if view.channels_last else view.S
    return not launch.INTERPRETED and alignment(axis) * view.itemsize < 8


def _sets(W: int, sets: Sets) -> int:
    if sets.depth == 1:
        return 0
    return 1 if sets.depth == W else triton.next_power_of_2(W // sets.depth)


def _tiles(view: View, sets: Sets, BLOCK_N: int, BLOCK_S: int) -> int:
    s_blocks = triton.cdiv(view.S, BLOCK_S)
    return s_blocks * triton.cdiv(view.N, BLOCK_N) if sets.batch else s_blocks
