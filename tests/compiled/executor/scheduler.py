"""Launches: the order in which CTAs run, whole or in turns."""

import random
import time
from collections.abc import Iterator

import numpy as np

from .control import run
from .cta import Cta
from .launch_state import LaunchState
from .memory import Memory
from .options import Options, Statistics
from .parser import Kernel
from .ptx_types import WARP, EmulationError

STARVED = 0.005  # of the turns go to the CTA that hardly runs
BURST_ENDS = 0.05  # the chance that another CTA's turn comes


def launch(
    kernel: Kernel,
    grid: int,
    arguments: list[int | float],
    shared: int,
    memory: Memory,
    options: Options,
    cooperative: bool = False,
) -> Statistics:
    """Run `grid` CTAs with `shared` bytes of shared memory each.

    `arguments` are one number for each parameter, pointers as addresses. All CTAs of a
    `cooperative` launch are alive at once, as its barriers need. Raises EmulationError at the first
    access that is not allowed, instruction that is not known, or deadlock.
    """
    started = time.perf_counter()
    state = LaunchState(kernel, grid, arguments, shared, memory, options)
    order = list(range(grid))
    generator = random.Random(options.seed)
    if options.schedule == "reversed":
        order.reverse()
    elif options.schedule in ("random", "interleaved"):
        generator.shuffle(order)
    with np.errstate(all="ignore"):
        if cooperative or options.schedule == "interleaved":
            _Turns(state, order, generator, cooperative).run()
        else:
            never = [False] * len(kernel.blocks)
            for index in order:
                for _ in run(Cta(state, index), never):
                    pass
    statistics = state.statistics
    statistics.ctas, statistics.warps = grid, grid * kernel.threads // WARP
    for count, block in zip(state.block_counts.tolist(), kernel.blocks, strict=True):
        if count:
            for kind, times in block.kinds.items():
                statistics.classes[kind] += times * count
    statistics.executed = statistics.classes.total()
    statistics.seconds = time.perf_counter() - started
    return statistics


class _Turns:
    """CTAs that run by turns, each up to a block that `stops` names."""

    def __init__(
        self, state: LaunchState, order: list[int], generator: random.Random, cooperative: bool
    ) -> None:
        options = state.options
        self.state, self.generator, self.options = state, generator, options
        self.interleaved = options.schedule == "interleaved"
        self.waiting = list(reversed(order))
        self.room = len(order) if cooperative else max(1, options.resident)
        self.alive: list[Iterator[None]] = []
        self.stops = [
            block.synchronises
            or (options.grain != "sync" and block.accesses)
            or options.grain == "block"
            for block in state.kernel.blocks
        ]
        self.turn = 0  # round robin
        self.burst = -1  # whose turns they are

    def run(self) -> None:
        since_one_ended = 0
        while self.waiting or self.alive:
            while self.waiting and len(self.alive) < self.room:
                self.alive.append(run(Cta(self.state, self.waiting.pop()), self.stops))
            chosen = self.choose()
            self.state.statistics.switches += 1
            try:
                next(self.alive[chosen])
            except StopIteration:
                self.alive.pop(chosen)
                since_one_ended = 0
                continue
            self.turn += 1
            since_one_ended += 1
            if since_one_ended > self.options.spins:
                raise EmulationError(
                    f"{self.state.kernel.name}: no CTA ended in {self.options.spins} turns, "
                    f"{len(self.alive)} alive, {len(self.waiting)} not started: a deadlock?"
                )

    def choose(self) -> int:
        """The position in `alive` of who goes on."""
        count = len(self.alive)
        if not self.interleaved:  # a cooperative launch in the order asked for
            self.turn %= count
            return self.turn
        if self.options.policy == "random":
            return self.generator.randrange(count)
        if self.options.policy == "starve":
            others = count > 1 and self.generator.random() >= STARVED
            return self.generator.randrange(1, count) if others else 0
        if not 0 <= self.burst < count or self.generator.random() < BURST_ENDS:
            self.burst = self.generator.randrange(count)
        return self.burst
