"""Which of three ways a norm takes, by the size of its reduction sets::

    one_program   a program keeps whole sets in registers: up to 16,384 elements, padded to powers
                  of two. One launch; the tensor is read once
    cluster       programs that are on the GPU together keep a set between them, up to 264 tiles of
                  at most 32 KB. One cooperative launch; the tensor is read once
    streaming     any set. Two launches, the tensor is read twice, forward and backward

For rows the sizes are others: `row_geometry.choose`.

A cluster's programs wait for one another. That is safe only where all of them run at once, which
the launch makes sure of; still the tier is off until asked for, because these kernels never ran on
a GPU: what was compiled of them was executed on a CPU. Triton's interpreter runs programs one after
another and has no such tier: there, sets that would take it stream.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

from . import launch

Found = TypeVar("Found")
Result = TypeVar("Result")

TIERS = ("one_program", "cluster", "streaming")
State = tuple[bool, str | None]  # whether clusters are allowed, and the tier forced
WITHOUT_CLUSTERS: State = (False, None)

_cooperative = False
_forced: str | None = None


@contextlib.contextmanager
def cooperative(enabled: bool) -> Iterator[None]:
    """Allow the cluster tier inside a `with` block, in all threads.

    Sets that fit one program still take that, and those too large for a cluster stream.
    """
    global _cooperative
    former, _cooperative = _cooperative, enabled
    try:
        yield
    finally:
        _cooperative = former


@contextlib.contextmanager
def force(tier: str) -> Iterator[None]:
    """Take one tier inside a `with` block, for tests. Raises ValueError for an unknown name, and
    RuntimeError for "cluster" in Triton's interpreter.

    A tensor that the tier cannot serve raises RuntimeError.
    """
    global _forced
    if tier not in TIERS:
        raise ValueError(f"unknown tier {tier!r}: choose one of {', '.join(TIERS)}")
    if tier == "cluster" and launch.INTERPRETED:
        raise RuntimeError(
            "tier 'cluster': its programs wait for one another, and Triton's interpreter runs one "
            "after another. Unset TRITON_INTERPRET to run it compiled"
        )
    former, _forced = _forced, tier
    try:
        yield
    finally:
        _forced = former


def state() -> State:
    """What a choice depends on beside the tensor."""
    return _cooperative, _forced


def first_with_room(
    state: State, geometries: dict[str, Callable[[], Found | None]], what: str
) -> tuple[str, Found]:
    """The first tier that has a geometry for `what`, and that geometry."""
    clusters, forced = state
    for tier in (forced,) if forced else TIERS:
        if tier != "cluster" or clusters or forced:
            found = geometries[tier]()
            if found is not None:
                return tier, found
    raise RuntimeError(f"tier {forced!r} has no room for {what}")


def with_fallback(run: Callable[[State], Result | None]) -> Result:
    """What `run` returns in the present state or, where it returns None, without clusters: a device
    may turn out to be too small for the one it is asked to launch."""
    result = run(state())
    if result is None:
        result = run(WITHOUT_CLUSTERS)
        assert result is not None
    return result
