"""The memory of the host that a launch may touch: buffers, by their addresses."""

import ctypes
from dataclasses import dataclass, field

import numpy as np

from .ptx_types import Array, u16, u32, u64

LINE = 16  # the largest access of a thread, in bytes


class Bytes:
    """Bytes seen as words of 1 to 8 bytes, alone or in vectors."""

    def __init__(self, raw: Array) -> None:
        self.raw = raw
        self.words: dict[int, Array] = {
            1: raw, 2: raw.view(u16), 4: raw.view(u32), 8: raw.view(u64)
        }  # fmt: skip
        self._vectors: dict[tuple[int, int], Array] = {}

    def vectors(self, width: int, count: int) -> Array:
        """As rows of `count` words of `width` bytes."""
        found = self._vectors.get((width, count))
        if found is None:
            found = self._vectors[width, count] = self.words[width].reshape(-1, count)
        return found

    def load(self, offset: Array, width: int, count: int) -> list[Array]:
        """One array for each word of the vectors at the offsets."""
        if count == 1:
            return [self.words[width][offset // width if width > 1 else offset]]
        return list(self.vectors(width, count)[offset // (width * count)].T.copy())

    def store(self, offset: Array, values: list[Array], width: int) -> None:
        count = len(values)
        if count == 1:
            self.words[width][offset // width] = values[0]
            return
        rows, view = offset // (width * count), self.vectors(width, count)
        for position, value in enumerate(values):
            view[rows, position] = value


@dataclass(eq=False)
class Buffer:
    """One tensor's memory. Offsets count from `base`, the multiple of 16 before its start."""

    name: str
    pointer: int
    size: int
    itemsize: int
    base: int = field(init=False)
    end: int = field(init=False)
    bytes: Bytes = field(init=False)

    def __post_init__(self) -> None:
        self.base, self.end = self.pointer & -LINE, self.pointer + self.size
        whole = -(-(self.end - self.base) // LINE) * LINE
        raw = (ctypes.c_uint8 * whole).from_address(self.base)
        self.bytes = Bytes(np.ctypeslib.as_array(raw))

    def element(self, unit: int) -> int:
        """The index in the tensor of the `unit`-th item from base."""
        return unit - (self.pointer - self.base) // self.itemsize


class Memory:
    """The buffers that a launch may touch. Who registers one keeps it alive meanwhile."""

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []

    def register(self, name: str, pointer: int, nbytes: int, itemsize: int) -> None:
        """Allow accesses of `nbytes` from address `pointer`; races are told by items."""
        known = any(b.pointer == pointer and b.size == nbytes for b in self.buffers)
        if nbytes and not known:
            self.buffers.append(Buffer(name, pointer, nbytes, itemsize))

    def find(self, start: int, end: int) -> Buffer | None:
        """A buffer that has all of [start, end)."""
        for buffer in self.buffers:
            if buffer.pointer <= start and end <= buffer.end:
                return buffer
        return None

    def describe(self, address: int) -> str:
        """Where an address lies, for messages."""
        if not self.buffers:
            return "no buffer is registered"
        near = min(self.buffers, key=lambda b: min(abs(address - b.pointer), abs(address - b.end)))
        return (
            f"nearest buffer {near.name!r} [{near.pointer:#x}, {near.end:#x}) of {near.size} "
            f"bytes: {address - near.pointer} bytes from its start, {address - near.end} from its "
            "end"
        )
