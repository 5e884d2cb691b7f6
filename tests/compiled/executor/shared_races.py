"""Options.races, shared memory: warps of a CTA that access one byte without a barrier between.

Threads of a warp count as in step: Triton orders them by the warp's own instructions. Several warps
may store the same value to one place without a race: replicated layouts do so.
"""

from typing import TYPE_CHECKING

import numpy as np

from .ptx_types import WARP, Array, Site, s32, u8

if TYPE_CHECKING:
    from .launch_state import LaunchState

NEVER = -1


class SharedRaces:
    """Who read and wrote each byte of a CTA's shared memory last, and between which barriers."""

    def __init__(self, state: "LaunchState", index: int, content: Array) -> None:
        self.state, self.index, self.content = state, index, content
        self.epoch = 0
        self.writer = np.full(content.size, NEVER, s32)  # thread
        self.written = np.full(content.size, NEVER, s32)  # epoch
        self.reader = np.full(content.size, NEVER, s32)
        self.read = np.full(content.size, NEVER, s32)
        self.several = np.zeros(content.size, np.bool_)  # warps have read it in epoch `read`

    def barrier(self) -> None:
        self.epoch += 1

    def check_read(self, offset: Array, size: int, threads: Array, site: Site) -> None:
        at, threads = _bytes(offset, size, threads)
        bad = (self.written[at] == self.epoch) & _other_warp(self.writer[at], threads)
        self._report("read after write", at, threads, bad, self.writer, site)
        if (self.writer[at] == NEVER).any():
            self._warn("shared memory read that nobody wrote")
        again = self.read[at] == self.epoch
        self.several[at[~again]] = False
        self.several[at[again & _other_warp(self.reader[at], threads)]] = True
        self.reader[at], self.read[at] = threads, self.epoch
        # Several warps may read a byte in this very instruction: the last one is noted.
        self.several[at[_other_warp(self.reader[at], threads)]] = True

    def check_write(self, offset: Array, size: int, threads: Array, new: Array, site: Site) -> None:
        """`new`: the bytes that are stored."""
        at, threads = _bytes(offset, size, threads)
        same = self.content[at] == new
        bad = (self.written[at] == self.epoch) & _other_warp(self.writer[at], threads)
        if (bad & same).any():
            self._warn("shared stores of the same by several warps")
        self._report("write after write", at, threads, bad & ~same, self.writer, site)
        bad = (self.read[at] == self.epoch) & (
            _other_warp(self.reader[at], threads) | self.several[at]
        )
        self._report("write after read", at, threads, bad & ~same, self.reader, site)
        self.writer[at], self.written[at] = threads, self.epoch
        if (self.writer[at] != threads).any():
            self._warn("one shared store, several threads, one address")
            last = np.zeros(self.content.size, u8)
            last[at] = new
            # Which of them stays is not defined. So it is with lanes of a sum that differ in the
            # last bit, where an fma has taken in one's own product but the other's as rounded.
            bad = last[at] != new
            self._report("different values by one store", at, threads, bad, self.writer, site)

    def _warn(self, text: str) -> None:
        self.state.statistics.warnings[text] += 1

    def _report(
        self, what: str, at: Array, threads: Array, bad: Array, others: Array, site: Site
    ) -> None:
        if not bad.any():
            return
        i = int(np.nonzero(bad)[0][0])
        self.state.race(
            f"shared memory, {what}: byte {at[i]}, CTA {self.index} threads {others[at[i]]} and "
            f"{threads[i]}",
            site,
        )


def _bytes(offset: Array, size: int, threads: Array) -> tuple[Array, Array]:
    """Every byte of the accesses, and its thread."""
    return (offset[:, None] + np.arange(size)).reshape(-1), np.repeat(threads, size)


def _other_warp(threads: Array, others: Array) -> Array:
    return threads // WARP != others // WARP
