"""Options.count: 32-byte sectors of global memory, banks of shared memory."""

import numpy as np

from .options import Statistics
from .ptx_types import WARP, Array, Mask, Site, s64, u64

SECTOR_SHIFT = u64(5)  # of 32 bytes
BANKS, BANK_BYTES, BYTES_A_PASS = 32, 4, 128


def spread(values: Array, mask: Mask, threads: int, others: int) -> Array:
    """The values of the threads that execute, at their place among all threads."""
    whole = np.full(threads, others, s64)
    whole[slice(None) if mask is None else mask] = values
    return whole


def count_sectors(
    statistics: Statistics,
    kind: str,
    address: Array,
    size: int,
    mask: Mask,
    threads: int,
    site: Site,
) -> int:
    """Count an access of `size` bytes at each address: requests of warps, sectors, bytes.

    Returns the sectors.
    """
    sectors = spread((address >> SECTOR_SHIFT).view(s64), mask, threads, -1).reshape(-1, WARP)
    sectors.sort(axis=1)
    first = np.ones(sectors.shape, np.bool_)
    first[:, 1:] = sectors[:, 1:] != sectors[:, :-1]
    touched = int(np.count_nonzero(first & (sectors >= 0)))
    statistics.sectors[kind, site] += touched
    statistics.requests[kind, site] += int(np.count_nonzero(sectors[:, -1] >= 0))
    statistics.asked[kind, site] += len(address) * size
    return touched


def count_conflicts(
    statistics: Statistics, offset: Array, size: int, mask: Mask, threads: int
) -> None:
    """Count requests of shared memory, and passes that banks asked for several words cost.

    Threads that ask for 8 or 16 bytes each are served half a warp or a quarter at a time.
    """
    together = min(WARP, BYTES_A_PASS // max(size, BANK_BYTES))
    words = np.arange(max(1, size // BANK_BYTES))
    for group in spread(offset, mask, threads, -1).reshape(-1, together):
        group = group[group >= 0]
        if len(group) == 0:
            continue
        asked = np.unique(group[:, None] // BANK_BYTES + words)
        statistics.shared_requests += 1
        statistics.bank_conflicts += int(np.bincount(asked % BANKS).max()) - 1
