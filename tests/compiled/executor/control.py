"""How a CTA goes through its blocks: all threads at once, or one warp after another.

Both are generators that stop before blocks that the scheduler may want to delay. If threads
diverge, each has the number of its next block. The smallest number is executed first, so that the
threads behind catch up; threads with the same number are together again. If some threads reach a
barrier, it holds them until all others that have not ended come. An instruction that a whole warp
executes together (shfl.sync and its like) does the same for the threads of a warp.
"""

import random
from collections.abc import Callable, Generator, Iterator

import numpy as np

from .cta import Cta
from .generator import EXIT, AtBarrier, Branch
from .ptx_types import WARP, Array, s64

STAYS = 0.75  # the chance that a warp that runs at random executes the next block too


def run(cta: Cta, stops: list[bool]) -> Iterator[None]:
    """Execute a CTA; stops before each block whose number `stops` says yes to."""
    if cta.state.options.warps == "lockstep":
        return _lockstep(cta, stops)
    return _warp_by_warp(cta, stops)


def _lockstep(cta: Cta, stops: list[bool]) -> Iterator[None]:
    program, counts, registers = cta.state.program, cta.state.block_counts, cta.registers
    whole, warps = program.whole, cta.threads // WARP
    number = 0
    while True:
        if stops[number]:
            yield
        counts[number] += warps
        function = whole[number] or program.function(number, partial=False)
        goes_on = function(cta, registers)
        if type(goes_on) is int:
            number = goes_on
        else:
            cta.state.statistics.warnings["divergent branches"] += 1
            threads = _Threads(cta)
            threads.go_on(cta.everyone, goes_on)
            number = yield from _parted(threads, stops)
        if number == EXIT:
            return


def _parted(threads: "_Threads", stops: list[bool]) -> Generator[None, None, int]:
    """Execute threads that have parted, until they are all at one block again: returns it."""
    while True:
        ready = threads.ready()
        if ready is None:
            return EXIT
        number, mask = threads.least_far(ready)
        if mask.all():
            return number
        if stops[number]:
            yield
        threads.go_on(mask, threads.execute(number, mask))


def _warp_by_warp(cta: Cta, stops: list[bool]) -> Iterator[None]:
    threads = _Threads(cta)
    choose, stays = _choice(cta)
    warp_of = cta.thread // WARP
    while True:
        ready = threads.ready()
        if ready is None:
            return
        mine = ready & (warp_of == choose(np.unique(warp_of[ready])))
        number, mask = threads.least_far(mine)
        whole = bool((mask == mine).all())
        while True:
            if stops[number]:
                yield
            where = threads.execute(number, mask)
            if not whole or not isinstance(where, int) or where == EXIT or not stays():
                break
            number = where
        threads.go_on(mask, where)


def _choice(cta: Cta) -> tuple[Callable[[Array], int], Callable[[], bool]]:
    """Which of the warps that can go on does, and whether it stays after a block, if it can."""
    options = cta.state.options
    generator = random.Random(options.seed * 7919 + cta.index)
    return {
        "forward": (lambda warps: warps[0], lambda: True),
        "backward": (lambda warps: warps[-1], lambda: True),
        "random": (
            lambda warps: warps[generator.randrange(len(warps))],
            lambda: generator.random() < STAYS,
        ),
    }[options.warps]


class _Threads:
    """Where the threads of a CTA are that do not all go the same way."""

    def __init__(self, cta: Cta) -> None:
        self.cta = cta
        self.next = np.zeros(cta.threads, s64)  # number of the block
        self.at_barrier = np.zeros(cta.threads, np.bool_)

    def ready(self) -> Array | None:
        """Those that can go on; None where all have ended. Opens a barrier that all came to."""
        live = self.next != EXIT
        if not live.any():
            return None
        ready = live & ~self.at_barrier
        if ready.any():
            return ready
        self.cta.barrier()
        self.at_barrier[:] = False
        return live

    def least_far(self, ready: Array) -> tuple[int, Array]:
        """The smallest block that threads can go on with, and those that do.

        Where whole warps are needed, of a warp none does before the others have come, from blocks
        with larger numbers: the compiler does not put blocks in the order of their execution.
        """
        live, here = self.next != EXIT, ready
        while here.any():
            number = int(self.next[here].min())
            mask = here & (self.next == number)
            if self.cta.state.program.kernel.blocks[number].needs_whole_warps:
                together = (mask == live).reshape(-1, WARP).all(1)
                mask, waiting = mask & np.repeat(together, WARP), mask
            else:
                waiting = mask
            if mask.any():
                return number, mask
            here = here & ~waiting
        number = int(self.next[ready].min())  # the others never come: an error, as on a GPU
        return number, ready & (self.next == number)

    def execute(self, number: int, mask: Array) -> int | Branch | AtBarrier:
        """Execute a block; returns where these threads go on."""
        state = self.cta.state
        state.block_counts[number] += np.count_nonzero(mask.reshape(-1, WARP).any(1))
        function = state.program.partial[number] or state.program.function(number, partial=True)
        return function(self.cta, self.cta.registers, mask)

    def go_on(self, mask: Array, where: int | Branch | AtBarrier) -> None:
        match where:
            case Branch(taken, target, otherwise):
                self.next[mask] = np.where(taken, target, otherwise)[mask]
            case AtBarrier(then):
                self.next[mask] = then
                self.at_barrier |= mask
            case _:
                self.next[mask] = where
