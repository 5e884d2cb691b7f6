"""Compiled Triton kernels, run without a GPU: an executor of their PTX in NumPy.

Triton's interpreter runs the source; a GPU runs what the compiler makes of it. This executor runs
the latter: all threads of a program at once, each register an array of one value a thread.

    emulator = install(Options(races=True), capability=90)
    kernel[grid](...)  # on CPU tensors
    emulator.statistics["kernel"].races

The path of a launch:

- `triton_hook`: stands in for Triton's driver and takes its launches; tensors become buffers.
- `parser`: PTX text -> `Kernel`, whose `instruction`s lie in basic blocks.
- `scheduler`: which CTA goes on, whole or in turns; deadlocks. `launch_state`: what CTAs share.
- `control`: how a CTA's threads go from block to block, in lockstep, apart, or warp by warp.
- `generator`: a block as a Python function, written at its first execution by
  `arithmetic_instructions`, `bit_instructions`, `memory_instructions` and `warp_instructions` by
  means of `writer` (operands, results, constants). It calls `integers` and `floats` for what NumPy
  has no operation for, and the
- `cta` for all else: special registers, votes, barriers, and its `global_memory` and
  `shared_memory`, which check every access against the `memory` that the launch may touch, and its
  `copies` from one to the other.

Beside it: `options` (how to execute, what was found), `races` and `shared_races` (happens-before
checks), `l1` (stale lines), `counters` (sectors, bank conflicts), `ptx_types` (PTX's types as
NumPy's).

Checked always: bounds and alignment of global and shared accesses, unknown instructions, shuffles
and barriers of a part of a warp, deadlocks. Uninitialised registers and shared memory are poison.

What is approximate:

- ptxas is not emulated: it may fuse mul and add, orders instructions, and chooses registers.
- `.approx` and `.full` operations are exact, or, with `Options.approx_noise`, off by up to the ulps
  that the PTX manual allows. A float32 fma is rounded to float64 and then to float32, one of 16-bit
  floats to float32 and then to them; a float64 one is exact but for rare ties.
- Threads of a warp are in step; those that part run the block with the smallest number first.
- Stores are seen by other CTAs at once (but for `Options.weak`), in the order of the program; so
  are atomics of any scope. Eviction priorities and cache levels other than L1 are not looked at.
- Races: see `races` and `shared_races`. A fence by itself orders nothing there.
- `Options.weak` keeps a line until an acquire or fence of its multiprocessor: nothing is evicted.
- Bank conflicts are counted in passes; an L1, a clock and latencies are not counted.

What is refused, as EmulationError: tensor descriptors and TMA, wgmma and mma, calls (that of a
device_assert which fails is told as a trap), clusters of CTAs, grids of more than one dimension,
scratch memory, static shared memory, atomics of shared memory and of 16-bit floats, generic
addresses, saturating conversions, 8-bit floats, named barriers.
"""

from .memory import Memory
from .options import Options, Statistics
from .parser import parse
from .ptx_types import EmulationError
from .scheduler import launch
from .triton_hook import Emulator, install

__all__ = [
    "EmulationError",
    "Emulator",
    "Memory",
    "Options",
    "Statistics",
    "install",
    "launch",
    "parse",
]
