"""Asynchronous copies from global to shared memory: read at once, written as late as they may be.

A copy may write at any time from its own instruction until a wait for its group. A thread that
reads too early finds the old contents, and a copy over data that others still read is a race.
"""

from dataclasses import dataclass

import numpy as np

from .global_memory import GlobalMemory
from .ptx_types import Array, EmulationError, Mask, Site, u32
from .shared_memory import SharedMemory

WORD = 4


@dataclass
class Copy:
    """What some threads have under way: a row of `words` for each."""

    threads: Array
    address: Array
    words: list[Array]
    group: Array  # of each thread


class Copies:
    """Those of one CTA. Threads commit and wait for groups of their own copies."""

    def __init__(self, source: GlobalMemory, target: SharedMemory) -> None:
        self.source, self.target = source, target
        self.threads = len(target.thread)
        self.committed = np.zeros(self.threads, np.int64)
        self.pending: list[Copy] = []

    def copy(
        self,
        to: Array,
        source: Array,
        size: int,
        there: Array | None,
        mask: Mask,
        kind: str,
        site: Site,
    ) -> None:
        """`size` bytes to each address; where `there` says that 0 bytes are, zeros."""
        executing = self._executing(mask)
        if not executing.any():
            return
        read = executing
        if there is not None:
            if not np.isin(there[executing], (0, size)).all():
                raise EmulationError("cp.async of a part of its bytes is not known")
            read = executing & (there != 0)
        words = [np.zeros(self.threads, u32) for _ in range(size // WORD)]
        through = "" if kind == "ca" else kind
        found = self.source.load(source, WORD, size // WORD, read, through, site)
        if found is not None:
            words = [np.where(read, value, u32(0)) for value in found]
        threads = np.nonzero(executing)[0]
        rows = [word[threads] for word in words]
        self.target.check_copy(to, words, executing, site)
        self.pending.append(Copy(threads, to[threads], rows, self.committed[threads]))

    def commit(self, mask: Mask) -> None:
        self.committed[self._executing(mask)] += 1

    def wait(self, count: int, mask: Mask, site: Site) -> None:
        """Until at most the last `count` groups of each thread are under way."""
        executing = self._executing(mask)
        left = []
        for each in self.pending:
            done = executing[each.threads] & (each.group < self.committed[each.threads] - count)
            if done.any():
                self._finish(each, done, site)
            if not done.all():
                late = ~done
                words = [word[late] for word in each.words]
                left.append(Copy(each.threads[late], each.address[late], words, each.group[late]))
        self.pending = left

    def _finish(self, each: Copy, done: Array, site: Site) -> None:
        """As a store of the threads whose copies are done."""
        threads = each.threads[done]
        mask = np.zeros(self.threads, np.bool_)
        mask[threads] = True
        address = np.zeros(self.threads, each.address.dtype)
        address[threads] = each.address[done]
        words = []
        for word in each.words:
            whole = np.zeros(self.threads, u32)
            whole[threads] = word[done]
            words.append(whole)
        self.target.store(address, words, WORD, mask, site)

    def _executing(self, mask: Mask) -> Array:
        return np.ones(self.threads, np.bool_) if mask is None else mask
