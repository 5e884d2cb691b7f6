"""Shared and local memory of a CTA: bounds, alignment, matrices. Both begin as poison."""

from typing import TYPE_CHECKING, NoReturn

import numpy as np

from .counters import count_conflicts
from .global_memory import all_or_mask, scattered
from .memory import LINE, Bytes
from .ptx_types import BITS, NUMPY, WARP, Array, EmulationError, Mask, Site, s64, u8, u16, u32
from .shared_races import SharedRaces
from .writer import SHARED_BASE

if TYPE_CHECKING:
    from .launch_state import LaunchState

POISON = 0xCD  # every byte that nobody has written: as a float -4e8, as an index far outside
ROW = 16  # bytes of a row of a matrix: 8 halves


class SharedMemory:
    """Accesses of one CTA. Arrays have a value for each thread; `mask` says which execute."""

    def __init__(self, state: "LaunchState", index: int) -> None:
        self.state, self.index, self.size = state, index, state.shared_bytes
        self.thread = np.arange(state.kernel.threads)
        self.bytes = Bytes(np.full(-(-self.size // LINE) * LINE + LINE, POISON, u8))
        races = state.options.races
        self.races = SharedRaces(state, index, self.bytes.raw) if races else None
        self.counting = state.options.count

    def barrier(self) -> None:
        if self.races is not None:
            self.races.barrier()

    def load(
        self, address: Array, width: int, count: int, mask: Mask, site: Site
    ) -> list[Array] | None:
        """`count` words of `width` bytes from each address; None where no thread executes it."""
        executing, mask = all_or_mask(mask, len(self.thread))
        if executing == 0:
            return None
        if mask is not None:
            address = address[mask]
        size = width * count
        offset = self._offset(address, size, site)
        if self.counting:
            count_conflicts(self.state.statistics, offset, size, mask, len(self.thread))
        if self.races is not None:
            threads = self.thread if mask is None else self.thread[mask]
            self.races.check_read(offset, size, threads, site)
        values = self.bytes.load(offset, width, count)
        return values if mask is None else scattered(values, mask, len(self.thread))

    def store(
        self, address: Array, values: list[Array], width: int, mask: Mask, site: Site
    ) -> None:
        executing, mask = all_or_mask(mask, len(self.thread))
        if executing == 0:
            return
        if mask is not None:
            address, values = address[mask], [value[mask] for value in values]
        size = width * len(values)
        offset = self._offset(address, size, site)
        if self.counting:
            count_conflicts(self.state.statistics, offset, size, mask, len(self.thread))
        if self.races is not None:
            threads = self.thread if mask is None else self.thread[mask]
            stored = np.ascontiguousarray(np.stack(values, 1)).view(u8).reshape(-1)
            self.races.check_write(offset, size, threads, stored, site)
        self.bytes.store(offset, values, width)

    def check_copy(self, address: Array, values: list[Array], mask: Array, site: Site) -> None:
        """A copy that may write from here on: not what others read since the last barrier."""
        size, threads = 4 * len(values), self.thread[mask]
        offset = self._offset(address[mask], size, site)
        if self.races is not None:
            stored = np.ascontiguousarray(np.stack([v[mask] for v in values], 1)).view(u8)
            self.races.check_write(offset, size, threads, stored.reshape(-1), site)

    def load_matrices(
        self, address: Array, count: int, transposed: bool, mask: Mask, site: Site
    ) -> list[Array]:
        """ldmatrix: thread t of a warp gets halves 2(t % 4) and the next of row t // 4 of each."""
        rows, warps = self._rows(address, count, mask, site)
        if self.races is not None:
            threads = np.repeat(warps * WARP, count * 8)
            self.races.check_read(rows.reshape(-1), ROW, threads, site)
        halves = self.bytes.vectors(2, 8)[rows // ROW]  # (warps, matrices, 8, 8)
        if transposed:
            halves = halves.swapaxes(2, 3)
        words = np.ascontiguousarray(halves).view(u32)  # (warps, matrices, 8, 4)
        found = []
        for matrix in range(count):
            whole = np.zeros((len(self.thread) // WARP, WARP), u32)
            whole[warps] = words[:, matrix].reshape(-1, WARP)
            found.append(whole.reshape(-1))
        return found

    def store_matrices(
        self, address: Array, values: list[Array], transposed: bool, mask: Mask, site: Site
    ) -> None:
        """stmatrix: the same the other way."""
        rows, warps = self._rows(address, len(values), mask, site)
        vectors = self.bytes.vectors(2, 8)
        for matrix, value in enumerate(values):
            words = np.ascontiguousarray(value.reshape(-1, WARP)[warps]).reshape(-1, 8, 4)
            halves = words.view(u16)  # (warps, 8, 8)
            if transposed:
                halves = np.ascontiguousarray(halves.swapaxes(1, 2))
            offset = np.ascontiguousarray(rows[:, matrix])
            if self.races is not None:
                threads = np.repeat(warps * WARP, 8)
                stored = halves.view(u8).reshape(-1)
                self.races.check_write(offset.reshape(-1), ROW, threads, stored, site)
            vectors[offset // ROW] = halves

    def _rows(self, address: Array, count: int, mask: Mask, site: Site) -> tuple[Array, Array]:
        """(offsets of rows, by warp, matrix and row; the warps that execute): thread 8m + r of a
        warp brings the address of row r of matrix m."""
        rows = address.reshape(-1, WARP)[:, : 8 * count].reshape(-1, count, 8)
        warps = np.arange(len(rows))
        if mask is not None:
            warps = warps[mask.reshape(-1, WARP).any(1)]
        if self.counting:
            self.state.statistics.shared_requests += count * len(warps)
        if len(warps) == 0:
            return rows[warps].astype(s64), warps
        return self._offset(rows[warps], ROW, site), warps

    def _offset(self, address: Array, size: int, site: Site) -> Array:
        offset = address.astype(s64) - SHARED_BASE
        first, last = int(offset.min()), int(offset.max())
        if first < 0 or last + size > self.size:
            self._fail(f"bytes {first} .. {last + size} of {self.size} of shared memory", site)
        if size > 1 and int(np.bitwise_or.reduce(offset, axis=None)) & (size - 1):
            self._fail(f"misaligned access of {size} bytes of shared memory", site)
        return offset

    def _fail(self, text: str, site: Site) -> NoReturn:
        raise EmulationError(f"CTA {self.index}: {text}\n  at {self.state.kernel.where(site)}")


class LocalMemory:
    """What each thread spilled: bytes of its own, at the same addresses for all."""

    def __init__(self, state: "LaunchState", index: int) -> None:
        self.state, self.index = state, index
        kernel = state.kernel
        self.bytes = np.full((kernel.threads, kernel.local_bytes), POISON, u8)

    def load(
        self, address: Array, width: int, count: int, mask: Mask, site: Site
    ) -> list[Array] | None:
        threads = self._threads(mask)
        if len(threads) == 0:
            return None
        found = []
        for position in range(count):
            at = self._bytes(address[threads], position * width, width, site)
            whole = np.zeros(len(self.bytes), NUMPY[BITS[width]])
            rows = np.ascontiguousarray(self.bytes[threads[:, None], at])
            whole[threads] = rows.view(whole.dtype).reshape(-1)
            found.append(whole)
        return found

    def store(
        self, address: Array, values: list[Array], width: int, mask: Mask, site: Site
    ) -> None:
        threads = self._threads(mask)
        if len(threads) == 0:
            return
        for position, value in enumerate(values):
            at = self._bytes(address[threads], position * width, width, site)
            stored = np.ascontiguousarray(value[threads]).view(u8).reshape(-1, width)
            self.bytes[threads[:, None], at] = stored

    def _threads(self, mask: Mask) -> Array:
        return np.arange(len(self.bytes)) if mask is None else np.nonzero(mask)[0]

    def _bytes(self, address: Array, skip: int, width: int, site: Site) -> Array:
        at = address.astype(s64)[:, None] + skip + np.arange(width)
        size = self.bytes.shape[1]
        if at.min() < 0 or at.max() >= size:
            raise EmulationError(
                f"CTA {self.index}: bytes {at.min()} .. {at.max() + 1} of {size} of local memory\n"
                f"  at {self.state.kernel.where(site)}"
            )
        return at
