"""Options.weak: the L1 of a multiprocessor, which plain loads read and no other SM's stores reach.

A line comes in when a load misses, and stays until an acquire, or a fence, by a CTA of that
multiprocessor: loads in between see what memory held then. Stores go through to memory, and into
the lines there are. (A real L1 also evicts, and may be looser still.)
"""

from collections.abc import Iterator

import numpy as np

from .memory import Buffer, Bytes
from .options import Statistics
from .ptx_types import Array


class _Copy:
    """The lines of one buffer."""

    def __init__(self, buffer: Buffer, line: int) -> None:
        self.bytes = Bytes(np.zeros_like(buffer.bytes.raw))
        self.valid = np.zeros(-(-self.bytes.raw.size // line), np.bool_)


class Cache:
    """The L1 of one multiprocessor: lines of `line` bytes, counted from each buffer's base."""

    def __init__(self, line: int) -> None:
        self.line = line
        self.copies: dict[Buffer, _Copy] = {}

    def read(self, buffer: Buffer, offset: Array, statistics: Statistics) -> Bytes:
        """The buffer as loads at these offsets see it."""
        copy = self.copies.get(buffer)
        if copy is None:
            copy = self.copies[buffer] = _Copy(buffer, self.line)
        lines = np.unique(offset // self.line)
        hits = copy.valid[lines]
        for part in self._slices(lines[~hits]):
            copy.bytes.raw[part] = buffer.bytes.raw[part]
        for part in self._slices(lines[hits]):
            if not np.array_equal(copy.bytes.raw[part], buffer.bytes.raw[part]):
                statistics.warnings["stale L1 sectors read"] += 1
        copy.valid[lines] = True
        return copy.bytes

    def written(self, buffer: Buffer) -> Bytes | None:
        """Where a store to the buffer has to go beside memory."""
        copy = self.copies.get(buffer)
        return copy.bytes if copy else None

    def drop(self) -> None:
        for copy in self.copies.values():
            copy.valid[:] = False

    def _slices(self, lines: Array) -> Iterator[slice]:
        for line in lines:
            yield slice(line * self.line, (line + 1) * self.line)
