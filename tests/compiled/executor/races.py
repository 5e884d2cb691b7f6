"""Options.races, global memory: does each access happen after those that it must not overtake?

Two accesses of one location, at least one a write and not both atomic, race unless one *happens
before* the other. Within a CTA bar.sync orders all threads: a CTA's accesses between two barriers
are an epoch. Between CTAs a release (by atom or st) that an acquire of the same address follows
orders what was before the release's last barrier (and what the releasing CTA knew of others)
before what the acquiring thread does next, and after its next barrier all of its CTA. So a CTA
knows of each other one the epochs that happened before: a vector clock.

Stricter than the PTX memory model: a release announces nothing that came after its CTA's last
barrier, not even the same thread's; scopes, and fences of their own, are not looked at. Looser: of
the reads of a location the last one of the last CTA and the last one of another are kept.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .memory import Buffer
from .ptx_types import WARP, Array, Site, s32, s64

if TYPE_CHECKING:
    from .launch_state import LaunchState

VectorClock = Array  # for each CTA the number of its epochs that are known to have happened before
NOBODY = -1


class Accesses:
    """Who accessed each unit of a buffer last, and in which epoch."""

    def __init__(self, units: int) -> None:
        self.cta = np.full(units, NOBODY, s32)
        self.epoch = np.zeros(units, s32)
        self.thread = np.zeros(units, s32)

    def note(self, units: Array, cta: int, epoch: int, threads: Array) -> None:
        self.cta[units], self.epoch[units], self.thread[units] = cta, epoch, threads

    def take_over(self, units: Array, other: "Accesses") -> None:
        for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True):
            mine[units] = theirs[units]


class Shadow:
    """What was last done to each unit of a buffer; a unit has the size of the tensor's items."""

    def __init__(self, buffer: Buffer) -> None:
        units = -(-buffer.bytes.raw.size // buffer.itemsize)
        self.write = Accesses(units)
        self.atomic = np.zeros(units, np.bool_)  # the last write
        self.read, self.read_before = Accesses(units), Accesses(units)  # by two CTAs
        self.load = np.zeros(units, s64)  # which execution of a load read it last


@dataclass
class _Access:
    """An access being checked: units of a buffer and the threads that access them."""

    buffer: Buffer
    units: Array
    threads: Array
    site: Site


class GlobalRaces:
    """What one CTA has done, and knows of the others."""

    def __init__(self, state: "LaunchState", index: int) -> None:
        self.state, self.index = state, index
        self.epoch = 0
        self.known: VectorClock = np.zeros(state.grid, s32)
        self.acquired: dict[int, VectorClock] = {}  # by a thread since the last barrier
        self.loads: dict[int, _Access] = {}  # executed since the last barrier

    # Order

    def barrier(self) -> None:
        self.epoch += 1
        self.loads.clear()
        for clock in self.acquired.values():
            self.known = np.maximum(self.known, clock)
        self.acquired.clear()

    def acquire(self, addresses: Array, threads: Array) -> None:
        for address, thread in zip(addresses.tolist(), threads.tolist(), strict=True):
            clock = self.state.releases.get(address)
            if clock is not None:
                mine = self.acquired.get(thread, clock)
                self.acquired[thread] = np.maximum(mine, clock)

    def release(self, addresses: Array, threads: Array) -> None:
        for address, thread in zip(addresses.tolist(), threads.tolist(), strict=True):
            clock = np.maximum(self.known, self.acquired.get(thread, self.known))
            clock[self.index] = self.epoch  # all its epochs but this one
            former = self.state.releases.get(address, clock)
            self.state.releases[address] = np.maximum(former, clock)

    def unordered(self, before: Accesses, access: _Access) -> Array:
        """For which units the access noted in `before` does not happen before this one."""
        cta, epoch, thread = (
            each[access.units] for each in (before.cta, before.epoch, before.thread)
        )
        mine = cta == self.index
        known = self.known[np.maximum(cta, 0)]
        bad = np.where(mine, (epoch == self.epoch) & (thread != access.threads), epoch >= known)
        bad &= cta != NOBODY
        if bad.any():
            for acquirer, clock in self.acquired.items():
                after = ~mine & (access.threads == acquirer) & (epoch < clock[np.maximum(cta, 0)])
                bad &= ~after
        return bad

    # Checks

    def check_read(
        self, buffer: Buffer, offset: Array, size: int, threads: Array, strong: bool, site: Site
    ) -> None:
        """`strong` reads (volatile, relaxed, acquire) race with no atomic, whatever their order."""
        shadow, access = self._shadow(buffer), self._access(buffer, offset, size, threads, site)
        bad = self.unordered(shadow.write, access)
        if strong:
            bad &= ~shadow.atomic[access.units]
        self._report("read after write", access, bad, shadow.write)
        if strong:
            return
        units = access.units
        by_others = units[shadow.read.cta[units] != self.index]
        shadow.read_before.take_over(by_others, shadow.read)
        shadow.read.note(units, self.index, self.epoch, access.threads)
        self.state.loads += 1
        shadow.load[units] = self.state.loads
        self.loads[self.state.loads] = access

    def check_write(
        self,
        buffer: Buffer,
        offset: Array,
        size: int,
        threads: Array,
        site: Site,
        values: list[Array] | None,
    ) -> None:
        """Of a store its `values`, of atomics None."""
        shadow, access = self._shadow(buffer), self._access(buffer, offset, size, threads, site)
        units, atomic = access.units, values is None
        bad = self.unordered(shadow.write, access)
        if atomic:
            bad &= ~shadow.atomic[units]
        self._report("write after write", access, bad, shadow.write)
        bad = self.unordered(shadow.read, access)
        if bad.any():
            fine = self._replicated(shadow, access, bad)
            if fine.any():
                self._warn("stores after a replicated load, unordered")
            bad &= ~fine
        self._report("write after read", access, bad, shadow.read)
        bad = self.unordered(shadow.read_before, access)
        self._report("write after read", access, bad, shadow.read_before)
        if values is not None and len(units) != len(np.unique(units)):
            self._check_same(access, values)
        shadow.write.note(units, self.index, self.epoch, access.threads)
        shadow.atomic[units] = atomic

    def _replicated(self, shadow: Shadow, access: _Access, bad: Array) -> Array:
        """Which units the writing thread's warp read in the very same load as the other thread.

        All threads of a replicated layout load a value, and one of them stores the next: what the
        others have read is of no use then. (Options.warps shows whether that is so.)
        """
        found = np.zeros(len(bad), np.bool_)
        candidates = bad & (shadow.read.cta[access.units] == self.index)
        for i in np.nonzero(candidates)[0]:
            unit = access.units[i]
            load = self.loads.get(int(shadow.load[unit]))
            if load is not None:
                same_warp = load.threads // WARP == access.threads[i] // WARP
                found[i] = ((load.units == unit) & same_warp).any()
        return found

    def _check_same(self, access: _Access, values: list[Array]) -> None:
        """Several threads store to one address at once: all of them must store the same."""
        self._warn("one store, several threads, one address")
        if len(values) * len(values[0]) != len(access.units):
            return  # words that are not the tensor's items
        order = np.argsort(access.units, kind="stable")
        units, stored = access.units[order], np.stack(values, 1).reshape(-1)[order]
        if ((units[1:] == units[:-1]) & (stored[1:] != stored[:-1])).any():
            self.state.race("one store, one address, values that differ", access.site)

    def _shadow(self, buffer: Buffer) -> Shadow:
        found = self.state.shadows.get(buffer)
        if found is None:
            found = self.state.shadows[buffer] = Shadow(buffer)
        return found

    def _access(
        self, buffer: Buffer, offset: Array, size: int, threads: Array, site: Site
    ) -> _Access:
        units = offset // buffer.itemsize
        many = size // buffer.itemsize
        if many > 1:
            units = (units[:, None] + np.arange(many)).reshape(-1)
            threads = np.repeat(threads, many)
        return _Access(buffer, units, threads, site)

    def _warn(self, text: str) -> None:
        self.state.statistics.warnings[text] += 1

    def _report(self, what: str, access: _Access, bad: Array, before: Accesses) -> None:
        if not bad.any():
            return
        i = int(np.nonzero(bad)[0][0])
        unit = access.units[i]
        self.state.race(
            f"{what}: {access.buffer.name}[{access.buffer.element(unit)}] ({int(bad.sum())} of "
            f"{len(bad)} units): CTA {self.index} thread {access.threads[i]} epoch {self.epoch}, "
            f"not ordered after CTA {before.cta[unit]} thread {before.thread[unit]} epoch "
            f"{before.epoch[unit]}",
            access.site,
        )
