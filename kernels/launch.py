"""How a kernel is launched: its device, its tiles, and a record of launches for the tests."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton

# Elements of one tile. On a GPU: 16 KB of fp32 a program, 32 registers a thread at 4 warps. In the
# interpreter each program costs milliseconds and each element nanoseconds: few, large tiles.
GPU_TILE = 4096
INTERPRETER_TILE = 1 << 18
# Programs that a reduction is split into when its rows alone are too few: 4 for each of 132 SMs.
ENOUGH_PROGRAMS = 528
# An instance's chunks are merged one after another by one program: keep that loop short.
MOST_CHUNKS = 64

# Set by TRITON_INTERPRET=1 when this package, and with it every kernel, is first imported.
INTERPRETED: bool = triton.knobs.runtime.interpret

_recorded: list[str] | None = None


@contextlib.contextmanager
def record() -> Iterator[list[str]]:
    """Yield a list that receives the name of each kernel launched inside the `with` block."""
    global _recorded
    outer = _recorded
    names: list[str] = []
    _recorded = names
    try:
        yield names
    finally:
        _recorded = outer
        if outer is not None:
            outer.extend(names)


def launch(kernel: Any, programs: int, x: torch.Tensor, *args: Any, **constants: Any) -> None:
    """Launch `kernel` with a one-dimensional grid on the device that x is on.

    The grid is one-dimensional throughout: its x dimension holds 2^31 - 1 programs, y and z 65,535.
    """
    if _recorded is not None:
        _recorded.append(kernel.fn.__name__)
    if x.is_cuda:
        with torch.cuda.device_of(x):
            kernel[(programs,)](*args, **constants)
    else:
        kernel[(programs,)](*args, **constants)


def accumulation(x: torch.Tensor) -> torch.dtype:
    """The dtype of statistics and partial sums: float64 for float64 tensors, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def statistics(x: torch.Tensor, count: int, shape: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """`count` tables for statistics of x, in one allocation, each aligned to 16 bytes.

    A table whose alignment changed with the batch size would make Triton compile its kernels anew.
    """
    elements = math.prod(shape)
    rows = x.new_empty((count, -(-elements // 4) * 4), dtype=accumulation(x)).unbind()
    return tuple(row[:elements].view(shape) for row in rows)


def contiguous(x: torch.Tensor | None) -> torch.Tensor | None:
    """The tensor itself where it is contiguous, else a copy."""
    return None if x is None else x.contiguous()


class MergeOutputs(NamedTuple):
    """What the backward merge is to fill in; None where a gradient was not asked for."""

    slope: torch.Tensor | None
    level: torch.Tensor | None
    dweight: torch.Tensor | None
    dbias: torch.Tensor | None
    drho: torch.Tensor | None


class ChannelView(NamedTuple):
    """A tensor seen as (N, C, S), contiguous or with its channels last in memory (N, S, C)."""

    N: int
    C: int
    S: int
    channels_last: bool


def channel_view(x: torch.Tensor, merge_batch: bool) -> ChannelView:
    """The (N, C, S) view of a dense x of rank >= 2.

    Where statistics run over the batch anyway (`merge_batch`) and the channels lie last in memory,
    N and S are one axis: (N, C) and NHWC inputs become one long instance, with no table of moments
    as large as x.
    """
    N, C = x.shape[:2]
    S = math.prod(x.shape[2:])
    channels_last = not x.is_contiguous() or S == 1
    if merge_batch and channels_last:
        N, S = 1, N * S
    return ChannelView(N, C, S, channels_last)


class Pivot(NamedTuple):
    """Which rows share the value their statistics are relative to (`device.load_pivot`)."""

    channels: int  # this many neighbouring channels
    per_channel: bool  # all instances


class Tiling(NamedTuple):
    """Tile sizes of one launch, and the split of S into `chunks` of `chunk` positions."""

    BLOCK_R: int
    BLOCK_S: int
    row_blocks: int
    chunk: int
    chunks: int

    @property
    def programs(self) -> int:
        return self.row_blocks * self.chunks


def _blocks(view: ChannelView) -> tuple[int, int]:
    """(BLOCK_R, BLOCK_S): never a function of N on a GPU, where it would recompile."""
    tile = INTERPRETER_TILE if INTERPRETED else GPU_TILE
    if view.channels_last:
        BLOCK_R = min(triton.next_power_of_2(view.C), tile if INTERPRETED else 64)
        BLOCK_S = min(triton.next_power_of_2(view.S), max(tile // BLOCK_R, 1))
        return BLOCK_R, BLOCK_S if INTERPRETED else tile // BLOCK_R
    BLOCK_S = min(triton.next_power_of_2(view.S), tile if INTERPRETED else 1024)
    BLOCK_R = tile // BLOCK_S
    if INTERPRETED:
        BLOCK_R = min(BLOCK_R, triton.next_power_of_2(view.N * view.C))
    return BLOCK_R, BLOCK_S


def _row_blocks(view: ChannelView, BLOCK_R: int) -> int:
    if view.channels_last:
        return view.N * triton.cdiv(view.C, BLOCK_R)
    return triton.cdiv(view.N * view.C, BLOCK_R)


def reduction_tiling(view: ChannelView, many_chunks: bool) -> Tiling:
    """Tiles of a reduction over S: chunks of several tiles, as few as keep the GPU busy."""
    BLOCK_R, BLOCK_S = _blocks(view)
    row_blocks = _row_blocks(view, BLOCK_R)
    most = triton.cdiv(view.S, BLOCK_S)
    wanted = 1 if INTERPRETED else triton.cdiv(ENOUGH_PROGRAMS, row_blocks)
    wanted = min(wanted, most if many_chunks else min(most, MOST_CHUNKS))
    chunk = triton.cdiv(triton.cdiv(view.S, wanted), BLOCK_S) * BLOCK_S
    return Tiling(BLOCK_R, BLOCK_S, row_blocks, chunk, triton.cdiv(view.S, chunk))


def pointwise_tiling(view: ChannelView) -> Tiling:
    """Tiles of an elementwise pass: one a program."""
    BLOCK_R, BLOCK_S = _blocks(view)
    chunks = triton.cdiv(view.S, BLOCK_S)
    return Tiling(BLOCK_R, BLOCK_S, _row_blocks(view, BLOCK_R), BLOCK_S, chunks)


def row_warps(elements: int) -> int:
    """32 elements a thread: 4 warps for a tile of 4,096, 16 for the longest rows."""
    return min(max(elements // 1024, 4), 16)
