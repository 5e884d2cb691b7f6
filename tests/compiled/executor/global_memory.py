"""Global memory as the threads of a CTA access it: bounds, alignment, atomics, L1s."""

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from .counters import count_sectors
from .l1 import Cache
from .memory import Buffer
from .ptx_types import WARP, Array, EmulationError, Mask, Site, s64, u64
from .races import GlobalRaces

if TYPE_CHECKING:
    from .launch_state import LaunchState

THROUGH_L1 = ("", "nc", "lu")  # kinds of loads that an L1 may answer
STRONG = ("acquire", "relaxed", "volatile")


def all_or_mask(mask: Mask, threads: int) -> tuple[int, Mask]:
    """(how many threads execute, None where that is all of them)"""
    if mask is None:
        return threads, None
    count = int(np.count_nonzero(mask))
    return count, None if count == threads else mask


def scattered(values: list[Array], mask: Array, threads: int) -> list[Array]:
    """Values of the threads that execute, at their place among all; 0 elsewhere."""
    whole = [np.zeros(threads, value.dtype) for value in values]
    for target, value in zip(whole, values, strict=True):
        target[mask] = value
    return whole


class GlobalMemory:
    """Accesses of one CTA. Arrays have a value for each thread; `mask` says which execute."""

    def __init__(self, state: "LaunchState", index: int, multiprocessor: int) -> None:
        self.state, self.index = state, index
        self.thread = np.arange(state.kernel.threads)
        self.races = GlobalRaces(state, index) if state.options.races else None
        self.counting = state.options.count
        self.cache: Cache | None = None
        if state.options.weak:
            new = Cache(state.options.sector)
            self.cache = state.caches.setdefault(multiprocessor, new)

    def load(
        self, address: Array, width: int, count: int, mask: Mask, kind: str, site: Site
    ) -> list[Array] | None:
        """`count` words of `width` bytes from each address; None where no thread executes it."""
        executing, mask = all_or_mask(mask, len(self.thread))
        if executing == 0:
            return None
        if mask is not None:
            address = address[mask]
        size = width * count
        buffer = self._buffer("load", address, size, site)
        offset = (address - u64(buffer.base)).view(s64)
        if self.counting:
            self._count("load", buffer, address, size, mask, site)
        if kind == "acquire":
            self._acquire(address, mask)
        if self.races is not None:
            threads = self.thread if mask is None else self.thread[mask]
            self.races.check_read(buffer, offset, size, threads, kind in STRONG, site)
        source = buffer.bytes
        if self.cache is not None and kind in THROUGH_L1:
            source = self.cache.read(buffer, offset, self.state.statistics)
        values = source.load(offset, width, count)
        return values if mask is None else scattered(values, mask, len(self.thread))

    def store(
        self, address: Array, values: list[Array], width: int, mask: Mask, kind: str, site: Site
    ) -> None:
        executing, mask = all_or_mask(mask, len(self.thread))
        if executing == 0:
            return
        if mask is not None:
            address, values = address[mask], [value[mask] for value in values]
        size = width * len(values)
        buffer = self._buffer("store", address, size, site)
        offset = (address - u64(buffer.base)).view(s64)
        if self.counting:
            self._count("store", buffer, address, size, mask, site)
        if self.races is not None:
            threads = self.thread if mask is None else self.thread[mask]
            if kind == "release":
                self.races.release(address, threads)
            self.races.check_write(buffer, offset, size, threads, site, values)
        buffer.bytes.store(offset, values, width)
        lines = self.cache.written(buffer) if self.cache is not None else None
        if lines is not None:
            lines.store(offset, values, width)

    def atomic(
        self,
        operation: str,
        address: Array,
        values: list[Array],
        kind: type[np.generic],
        mask: Mask,
        order: str,
        site: Site,
    ) -> Array:
        """One thread after another; returns what each of them found there."""
        found = np.zeros(len(self.thread), kind)
        threads = self.thread if mask is None else np.nonzero(mask)[0]
        if len(threads) == 0:
            return found
        size = found.itemsize
        address = address[threads]
        buffer = self._buffer("atomic", address, size, site)
        offset = (address - u64(buffer.base)).view(s64)
        if self.counting:
            self.state.statistics.requests["atomic", site] += len(np.unique(threads // WARP))
        if order in ("acq_rel", "acquire"):
            self._acquire(address, mask)
        if self.races is not None:
            if order in ("acq_rel", "release"):
                self.races.release(address, threads)
            self.races.check_write(buffer, offset, size, threads, site, None)
        words = buffer.bytes.words[size].view(kind)
        for thread, word in zip(threads, offset // size, strict=True):
            found[thread] = words[word]
            operands = [value[thread] for value in values]
            words[word] = updated(operation, words[word], *operands)
        return found

    def fence(self, mask: Mask) -> None:
        """Empties the L1, as an acquire does; the race checks know nothing of it."""
        if mask is None or mask.any():
            if self.cache is not None:
                self.cache.drop()
            if self.races is not None:
                self.state.statistics.warnings["fence: not modelled for races"] += 1

    def barrier(self) -> None:
        if self.races is not None:
            self.races.barrier()

    def _acquire(self, address: Array, mask: Mask) -> None:
        if self.cache is not None:
            self.cache.drop()
        if self.races is not None:
            self.races.acquire(address, self.thread if mask is None else self.thread[mask])

    def _count(
        self, kind: str, buffer: Buffer, address: Array, size: int, mask: Mask, site: Site
    ) -> None:
        statistics, threads = self.state.statistics, len(self.thread)
        sectors = count_sectors(statistics, kind, address, size, mask, threads, site)
        statistics.sectors_of[kind, buffer.name] += sectors

    def _buffer(self, what: str, address: Array, size: int, site: Site) -> Buffer:
        """The one buffer that all addresses lie in, aligned to the access's size."""
        memory = self.state.memory
        buffer = memory.find(int(address.min()), int(address.max()) + size)
        if buffer is None:
            for each in address.tolist():
                if memory.find(each, each + size) is None:
                    self._fail(
                        f"out-of-bounds {what} of {size} bytes at {each:#x}: "
                        + memory.describe(each),
                        site,
                    )
            self._fail(f"one {what} of several buffers", site)
        if size > 1 and int(np.bitwise_or.reduce(address)) & (size - 1):
            self._fail(f"misaligned {what} of {size} bytes", site)
        return buffer

    def _fail(self, text: str, site: Site) -> NoReturn:
        raise EmulationError(f"CTA {self.index}: {text}\n  at {self.state.kernel.where(site)}")


def updated(operation: str, old: Any, value: Any, new: Any = None) -> Any:
    """What an atomic operation leaves behind, of NumPy's scalars; `new` is cas's third operand."""
    match operation:
        case "add":
            return old + value
        case "exch":
            return value
        case "cas":
            return new if old == value else old
        case "min":
            return min(old, value)
        case "max":
            return max(old, value)
        case "and":
            return old & value
        case "or":
            return old | value
        case "xor":
            return old ^ value
        case "inc":
            return type(old)(0) if old >= value else old + type(old)(1)
        case "dec":
            return value if old == 0 or old > value else old - type(old)(1)
    raise EmulationError(f"atomic {operation}")
