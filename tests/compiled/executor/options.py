"""Options for executing a launch, and the findings about it."""

from collections import Counter
from dataclasses import dataclass, field, fields

from .ptx_types import Site

SCHEDULES = ("order", "reversed", "random", "interleaved")
GRAINS = ("sync", "memory", "block")
POLICIES = ("random", "starve", "bursts")
WARPS = ("lockstep", "forward", "backward", "random")


@dataclass
class Options:
    """How CTAs and warps are scheduled, and which checks run beside those that always do."""

    schedule: str = "order"  # of the CTAs: order, reversed, random, or interleaved
    seed: int = 0  # of every random choice
    # What an interleaved CTA stops before: "sync" (atomics, and strong or volatile accesses),
    # "memory" (every access of global memory too) or "block" (every basic block too).
    grain: str = "sync"
    resident: int = 64  # interleaved CTAs alive at once; of a cooperative launch all are
    policy: str = "random"  # interleaved: random, starve (one CTA hardly runs), bursts
    # Within a CTA: all warps in lockstep, or one by one, each up to its next barrier, the first
    # (forward), the last (backward) or a random one before the others.
    warps: str = "lockstep"
    races: bool = False  # check that accesses of one location happen before one another
    weak: bool = False  # plain loads come from an L1, which an acquire empties
    sms: int = 0  # multiprocessors that CTAs share, so L1s; 0: each CTA has one
    sector: int = 32  # bytes that a miss brings into an L1
    count: bool = False  # sectors, bank conflicts (instructions are counted always)
    approx_noise: bool = False  # approximate operations are off as far as the manual allows
    spins: int = 200_000  # turns of the scheduler in which no CTA ends: a deadlock
    max_races: int = 20  # that Statistics.races tells of

    def __post_init__(self) -> None:
        for name, known in (
            ("schedule", SCHEDULES),
            ("grain", GRAINS),
            ("policy", POLICIES),
            ("warps", WARPS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {known}")


@dataclass
class Statistics:
    """What was found out about one launch, or about all of a kernel."""

    kernel: str = ""
    launches: int = 0
    ctas: int = 0
    warps: int = 0
    seconds: float = 0.0
    executed: int = 0  # instructions, one for a warp
    classes: Counter[str] = field(default_factory=Counter)  # the same by Instruction.kind
    # Of global memory, by ("load", "store" or "atomic", site), where Options.count: requests (one
    # for a warp), 32-byte sectors that they touch, bytes asked for by the threads.
    requests: Counter[tuple[str, Site]] = field(default_factory=Counter)
    sectors: Counter[tuple[str, Site]] = field(default_factory=Counter)
    asked: Counter[tuple[str, Site]] = field(default_factory=Counter)
    sectors_of: Counter[tuple[str, str]] = field(default_factory=Counter)  # by argument, not site
    # Of shared memory: a request is one for a warp, or for half or a quarter of it where threads
    # access 8 or 16 bytes each; a matrix of ldmatrix or stmatrix is one.
    shared_requests: int = 0
    bank_conflicts: int = 0  # passes beyond the first of each request
    races: list[str] = field(default_factory=list)
    warnings: Counter[str] = field(default_factory=Counter)  # what may be right
    switches: int = 0  # turns of the scheduler

    def add(self, other: "Statistics") -> None:
        for name in (each.name for each in fields(self) if each.name != "kernel"):
            mine, more = getattr(self, name), getattr(other, name)
            if isinstance(mine, Counter):
                mine.update(more)  # keeps entries of 0, which + would drop
            else:
                setattr(self, name, mine + more)

    def race(self, text: str, most: int) -> None:
        """Note a race; only the first `most` in words."""
        self.warnings["races"] += 1
        if len(self.races) < most:
            self.races.append(text)
