"""State shared by the CTAs of one launch."""

from dataclasses import dataclass, field

import numpy as np

from .generator import Program, program_of
from .l1 import Cache
from .memory import Buffer, Memory
from .options import Options, Statistics
from .parser import Kernel
from .ptx_types import BITS, BYTES, HELD_AS, NUMPY, Array, EmulationError, Site, is_float
from .races import Shadow, VectorClock


@dataclass
class LaunchState:
    kernel: Kernel
    grid: int
    arguments: list[int | float]
    shared_bytes: int
    memory: Memory
    options: Options
    statistics: Statistics = field(init=False)
    program: Program = field(init=False)
    noise: np.random.Generator | None = field(init=False)
    # How often each block was executed, by warps.
    block_counts: Array = field(init=False)
    # Options.races: what is known of each buffer, and of the last release of each address.
    shadows: dict[Buffer, Shadow] = field(default_factory=dict)
    releases: dict[int, VectorClock] = field(default_factory=dict)
    loads: int = 0  # executed, to tell them apart
    # Options.weak: the L1s, by multiprocessor.
    caches: dict[int, Cache] = field(default_factory=dict)
    _parameters: dict[tuple[int, type[np.generic]], Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kernel, options = self.kernel, self.options
        if len(self.arguments) != len(kernel.parameters):
            raise EmulationError(
                f"{kernel.name}: {len(self.arguments)} arguments for "
                f"{len(kernel.parameters)} parameters"
            )
        self.statistics = Statistics(kernel.name, launches=1)
        self.program = program_of(kernel)
        self.noise = np.random.default_rng(options.seed) if options.approx_noise else None
        self.block_counts = np.zeros(len(kernel.blocks), np.int64)

    def parameter(self, index: int, kind: type[np.generic]) -> Array:
        """The argument at an index in all threads, as ld.param reads it."""
        found = self._parameters.get((index, kind))
        if found is None:
            held = HELD_AS[self.kernel.parameters[index].kind]
            value = self.arguments[index]
            if is_float(held):
                array = np.full(self.kernel.threads, value, NUMPY[held])
            else:
                raw = int(value) & ((1 << (8 * BYTES[held])) - 1)
                array = np.full(self.kernel.threads, raw, NUMPY[BITS[BYTES[held]]])
            if array.dtype.itemsize != np.dtype(kind).itemsize:
                raise EmulationError(f"parameter {index} of type {held} read as {kind.__name__}")
            found = array.view(kind)
            found.setflags(write=False)
            self._parameters[index, kind] = found
        return found

    def race(self, text: str, site: Site) -> None:
        at = self.kernel.where(site)
        self.statistics.race(f"{text}, at {at}", self.options.max_races)
