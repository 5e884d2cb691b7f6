"""Which programs read which elements: units, tiles and parts of a tensor seen as (N, C, S).

The terms are those of `channel_lanes.py`; `tilings.py` chooses the numbers.
"""

import math
from typing import Any, NamedTuple

import torch
import triton

from . import launch

SM_REGISTERS = 65536


class View(NamedTuple):
    """A tensor seen as (N, C, S), contiguous or with its channels last in memory (N, S, C)."""

    N: int
    C: int
    S: int
    channels_last: bool
    itemsize: int

    def regrouped(self, depth: int) -> "View":
        """The same with `depth` neighbouring channels of the contiguous layout as one channel."""
        return self._replace(C=self.C // depth, S=self.S * depth)


class Sets(NamedTuple):
    """The values that share statistics: `depth` channels of one instance or, if `batch`, of all.

    `mix` adds each instance's statistics to the batch's. `samples`: weight and bias belong to each
    (n, c).
    """

    depth: int
    batch: bool
    mix: bool
    samples: bool = False

    @property
    def of_batch(self) -> bool:
        """Whether there are only the batch's statistics: a mixture keeps each instance's too."""
        return self.batch and not self.mix

    @property
    def one_instance(self) -> bool:
        """Whether the batch may be seen as one instance: its instances need not be told apart."""
        return self.of_batch and not self.samples


class Geometry(NamedTuple):
    """Units of W channels, tiles of BLOCK_N x BLOCK_C x BLOCK_S, `parts` of `steps` tiles."""

    view: View
    sets: Sets
    W: int
    BLOCK_N: int
    BLOCK_C: int
    BLOCK_S: int
    parts: int
    steps: int
    num_warps: int
    columns: int = 0  # of a folded tile: all positions of its channels; 0 if not folded
    several: bool = False  # a program keeps its `steps` tiles
    blocks: int = 1  # of channels, that one program has

    @property
    def rows(self) -> bool:
        """Whether a tile's instances are rows of its positions; then lanes are only channels."""
        return self.sets.one_instance and not (self.view.channels_last or self.columns)

    @property
    def lanes(self) -> int:
        return self.columns or (self.BLOCK_C if self.rows else self.BLOCK_N * self.BLOCK_C)

    @property
    def elements(self) -> int:
        """Elements of a program's tiles, with those that do not exist."""
        return self.lanes * self._positions * self.steps

    @property
    def u_blocks(self) -> int:
        return triton.cdiv(self.view.C, self.W)

    @property
    def units(self) -> int:
        return self.u_blocks * (1 if self.sets.batch else self.view.N)

    @property
    def members(self) -> int:
        return triton.cdiv(self.W, self.BLOCK_C * self.blocks) * self.parts

    def resident_registers(self, backward: bool) -> int:
        """A limit for kernels that keep their tile: 16 warps an SM, 12 if lanes crowd them.

        Without a limit the assembler takes up to 255 registers a thread. That leaves too few warps
        to keep the memory busy; or it spills, under a limit of its own.
        """
        return 168 if self.crowded(backward) and self.num_warps == 4 else 128

    def reducing_registers(self, backward: bool) -> int:
        """A limit for kernels that read a tile once and do not keep it: 12 to 24 warps an SM."""
        if self._short or self.view.channels_last:
            return 168
        if self.rows and backward:
            return 168 if self.BLOCK_N > 16 else 128
        if not backward or self.sets.mix or self.columns:
            return 128
        return {2: 80, 4: 80, 8: 128}[self.view.itemsize]

    def reducing_at_once(self, backward: bool) -> int:
        """How many such programs an SM has at a time."""
        return SM_REGISTERS // (32 * self.num_warps * self.reducing_registers(backward))

    def pointwise_registers(self, has_residual: bool, backward: bool) -> int | None:
        """A limit for passes without sums, or None: they spill only with a residual."""
        if self.columns:
            return 128 if backward else None
        if not has_residual:
            return None
        crowded = self.crowded(backward)
        if crowded and self.sets.mix:
            return 232
        return 168 if crowded else 128

    def crowded(self, backward: bool) -> bool:
        """Whether a thread keeps the values of so many lanes that its elements have no room.

        With channels last a thread's lanes are 16 bytes of neighbouring channels. A forward has
        room for them if they are of one instance; a backward keeps five values for each lane.
        """
        return self._short or (self.view.channels_last and (backward or self.sets.batch))

    @property
    def _short(self) -> bool:
        """Many short lanes: a thread keeps the statistics of several."""
        return not self.view.channels_last and not self.columns and self.lanes >= 16

    def scalars(self) -> tuple[int, ...]:
        """The sizes, in the kernels' order; sizes with an alignment in K are divided by it."""
        N, C, S, _, _ = self.view
        align_c, align_s, align_w = self._alignments
        return (
            N,
            C // align_c,
            S // align_s,
            self.sets.depth,
            self.W // align_w,
            self.u_blocks,
            self.parts,
            self.steps,
        )

    def constants(self) -> dict[str, Any]:
        """The fields of `channel_types.Choices` that follow from the geometry."""
        align_c, align_s, align_w = self._alignments
        return {
            "CHANNELS_LAST": self.view.channels_last,
            "ALIGN_C": align_c,
            "ALIGN_S": align_s,
            "ALIGN_W": align_w,
            "SETS": self._padded_sets,
            "BLOCK_N": 1 if self.rows else self.BLOCK_N,
            "BLOCK_C": self.BLOCK_C,
            "BLOCK_S": self._positions,
            "ROW": self.BLOCK_S if self.rows else 0,
            "LANES": self.lanes,
            "INNER": self._inner,
            "FOLDED": self.columns > 0,
            "TILES": self.steps if self.several else 0,
            "TILES_S": self.steps // self.blocks if self.several else 0,
            "WHOLE": self._whole,
            "RUN": self._run,
            "PADDED": triton.next_power_of_2(self._runs) if self.columns else 0,
        }

    @property
    def _whole(self) -> bool:
        """Whether no program with several tiles lacks elements, at any batch size."""
        width = self.BLOCK_S * (self.steps // self.blocks)
        within = self.several and not self.sets.batch
        return within and self.view.S % width == 0 and self.W % self.BLOCK_C == 0

    @property
    def _inner(self) -> int:
        """Positions of the tile's axis that is spread over threads. Contiguous: as many as a warp
        loads at once, or all if all warps share one lane. Channels last: as many as a program
        loads at once."""
        at_once = 512 // self.view.itemsize
        if self.view.channels_last or self.columns:
            return min(max(self.num_warps * at_once // self.lanes, 1), self.BLOCK_S)
        if self.several:  # no outer axis: threads are spread over the whole tile
            return self._positions
        # The interpreter reduces along this axis step by step.
        if launch.INTERPRETED or self.lanes > 1:
            return min(self._positions, at_once)
        return min(self._positions, self.num_warps * at_once if self.rows else self.BLOCK_S)

    @property
    def _run(self) -> int:
        """Neighbouring lanes of a folded tile that one thread has, of at most two channels."""
        longest = 1 << self.view.S.bit_length() - 1  # a power of two, at most S
        return min(16 // self.view.itemsize, longest) if self.columns else 1

    @property
    def _runs(self) -> int:
        """The most runs of lanes that a channel has a part of."""
        S, run = self.view.S, self._run
        return S // run if S % run == 0 else (S - 2) // run + 2

    @property
    def _positions(self) -> int:
        """Positions of a lane of a tile; if instances are rows, those of all instances."""
        return self.BLOCK_S * (self.BLOCK_N if self.rows else 1)

    @property
    def _padded_sets(self) -> int:
        """The sets of a unit: 0 if each channel is one, else 1 or the next power of two."""
        depth = self.sets.depth
        return 0 if depth == 1 else triton.next_power_of_2(triton.cdiv(self.W, depth))

    @property
    def _alignments(self) -> tuple[int, int, int]:
        """The alignments of C, S and W; C and S have one only if they are contiguous in memory."""
        _, C, S, channels_last, _ = self.view
        of_c = alignment(C) if channels_last or self.columns else 1
        return of_c, 1 if channels_last else alignment(S), alignment(self.W)


def alignment(size: int) -> int:
    """The power of two, up to 16, by which a size is divided for kernels. The quotient fits 32 bits
    and is multiplied again in 32 bits. 1: the size is passed whole, in 64 bits."""
    return math.gcd(size, 16) if size < 2**31 else 1


def view_of(shape: torch.Size, contiguous: bool, itemsize: int, merge_batch: bool) -> View:
    """The (N, C, S) view of a tensor of rank >= 2, contiguous or with its channels last.

    If only the batch's statistics are wanted (`merge_batch`) and the channels lie last in memory, N
    and S are one axis: (N, C) and NHWC inputs become one long instance.
    """
    N, C = shape[:2]
    S = math.prod(shape[2:])
    channels_last = not contiguous or S == 1
    if merge_batch and channels_last:
        N, S = 1, N * S
    return View(N, C, S, channels_last, itemsize)
