"""A CTA: its threads' registers, its memories, and the services that its threads call."""

from typing import TYPE_CHECKING, NoReturn

import numpy as np

from .copies import Copies
from .global_memory import GlobalMemory
from .ptx_types import WARP, Array, EmulationError, Mask, Site, pred, u8, u16, u32, u64
from .shared_memory import LocalMemory, SharedMemory

if TYPE_CHECKING:
    from .launch_state import LaunchState

# What a register holds that nobody has written, by its bytes: NaN as a float, nonsense as a number.
UNDEFINED: dict[int, np.generic] = {
    0: pred(False), 1: u8(0xCD), 2: u16(0x7FC1), 4: u32(0x7FC0DEAD), 8: u64(0x7FF8DEAD7FC0DEAD)
}  # fmt: skip


class Cta:
    """What the Python of a block works on."""

    def __init__(self, state: "LaunchState", index: int) -> None:
        self.state, self.index = state, index
        kernel = state.kernel
        self.threads = kernel.threads
        self.thread = np.arange(self.threads)
        self.everyone = np.ones(self.threads, np.bool_)
        undefined = {size: np.full(self.threads, value) for size, value in UNDEFINED.items()}
        self.registers: list[Array] = [undefined[r.bytes] for r in kernel.registers.values()]
        sms = state.options.sms
        self.multiprocessor = index % sms if sms else index
        self.global_memory = GlobalMemory(state, index, self.multiprocessor)
        self.shared_memory = SharedMemory(state, index)
        self.local_memory = LocalMemory(state, index)
        self.copies = Copies(self.global_memory, self.shared_memory)
        self.noise = state.noise

    def special(self, name: str, axis: str) -> Array:
        """%tid.x and its like. Grids and CTAs have one dimension, clusters one CTA."""
        first = axis == "x"
        match name:
            case "tid":
                value = self.thread if first else 0
            case "ctaid" | "clusterid":
                value = self.index if first else 0
            case "ntid":
                value = self.threads if first else 1
            case "nctaid":
                value = self.state.grid if first else 1
            case "laneid":
                value = self.thread % WARP
            case "warpid":
                value = self.thread // WARP
            case "smid":
                value = self.multiprocessor
            case "cluster_nctaid":
                value = 1
            case "cluster_ctaid" | "cluster_ctarank":
                value = 0
            case _:
                raise EmulationError(f"special register %{name}")
        return np.broadcast_to(np.asarray(value, u32), (self.threads,)).copy()

    def parameter(self, index: int, kind: type[np.generic]) -> Array:
        return self.state.parameter(index, kind)

    def barrier(self) -> None:
        """All threads have come to it."""
        self.global_memory.barrier()
        self.shared_memory.barrier()

    def vote(self, how: str, condition: Array, mask: Mask) -> Array:
        """all, any or ballot, of the threads of each warp that execute it."""
        executing = (self.everyone if mask is None else mask).reshape(-1, WARP)
        true = condition.reshape(-1, WARP) & executing
        match how:
            case "ballot":
                bits = (true.astype(u64) << np.arange(WARP, dtype=u64)).sum(1).astype(u32)
            case "any":
                bits = true.any(1)
            case "all":
                bits = (true | ~executing).all(1)
            case _:
                raise EmulationError(f"vote.{how}")
        return np.repeat(bits, WARP)

    def check_shuffle(self, sources: Array, mask: Array, site: Site) -> None:
        """Whole warps execute it, or else a thread's source is undefined."""
        if (mask & ~mask[sources]).any():
            self.fail("shfl from a thread that does not execute it", site)
        self.check_whole_warps(mask, site)

    def check_whole_warps(self, mask: Array, site: Site) -> None:
        counts = np.count_nonzero(mask.reshape(-1, WARP), axis=1)
        if ((counts != 0) & (counts != WARP)).any():
            self.fail("a .sync instruction in a part of a warp", site)

    def trap(self, mask: Mask, site: Site) -> None:
        if mask is None or mask.any():
            self.fail("trap", site)

    def fail(self, text: str, site: Site) -> NoReturn:
        raise EmulationError(f"CTA {self.index}: {text}\n  at {self.state.kernel.where(site)}")
