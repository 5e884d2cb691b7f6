"""Orders in which programs and warps may run, and the orders that are tried for a case.

A GPU promises none of them. Results must have the same bits in each: the order of sums is fixed.
"""

from tests.compiled.cases import OF_ROWS, WITHOUT_TIERS, Case
from tests.compiled.executor import Options

SCHEDULES = {
    "random": Options(schedule="random", seed=3, races=True),
    "warps forward": Options(schedule="order", warps="forward"),
    "warps backward": Options(schedule="reversed", warps="backward", races=True),
    "in order": Options(schedule="order", races=True),
    "in turns": Options(schedule="interleaved", seed=1, grain="memory", races=True),
    "in bursts": Options(
        schedule="interleaved", seed=2, grain="memory", policy="bursts", resident=1000
    ),
    "few at once": Options(schedule="interleaved", seed=3, grain="sync", resident=4),
    "block by block": Options(schedule="interleaved", seed=4, grain="block", resident=16),
    "one starves": Options(
        schedule="interleaved", seed=5, grain="sync", policy="starve", resident=1000
    ),
    "stale lines": Options(schedule="interleaved", seed=6, grain="memory", weak=True),
    "shared stale lines": Options(
        schedule="interleaved", seed=7, grain="memory", weak=True, sms=2, sector=128, races=True
    ),
    "warps at random": Options(
        schedule="interleaved", seed=9, grain="memory", resident=8, warps="random", weak=True, sms=3
    ),
}
# Programs that never meet differ in nothing but their order and that of their warps.
APART = ("random", "warps forward", "warps backward")
TOGETHER = tuple(SCHEDULES)
SLOWEST = ("warps forward", "warps backward", "warps at random")  # a warp at a time
MANY_ELEMENTS = 15_000


def schedules_of(case: Case, turn: int) -> tuple[str, ...]:
    """Two of those that can make a difference, other ones for the next turn."""
    meet = case.tier != "one_program" or case.op == "instance_stats" or _gathers(case)
    names = TOGETHER if meet else APART
    elements = 1
    for size in case.shape:
        elements *= size
    if elements > MANY_ELEMENTS:
        names = tuple(name for name in names if name not in SLOWEST)
    # Neighbours first, then those a step further: every pair of schedules has its turn.
    one = turn % len(names)
    other = (one + 1 + turn // len(names) % max(len(names) - 1, 1)) % len(names)
    return (names[one], names[other]) if one != other else (names[one],)


def _gathers(case: Case) -> bool:
    """Whether the last program of a one-program launch adds up what the others left."""
    within = case.op.startswith(("instance", "group", "batch_instance_eval"))
    return case.op in WITHOUT_TIERS or (within and case.op not in OF_ROWS)
