"""Which of three ways a norm takes, by the size of its sets::

    one_program   a program keeps whole sets in registers: up to 16,384 elements, padded to powers
                  of two; contiguous ones within an instance, without a residual, up to 20 tiles of
                  4,096 elements of 16 bits, or 10 of 32, and half as many backward. One launch;
                  the tensor is read once
    cluster       programs that are on the GPU together share a set: up to 264 of them, each with
                  16 tiles of 1,024 elements of 16 bits, or 8 of 32, and half as many backward. For
                  contiguous sets of norms that have nothing else to do: `channels_cluster`. One
                  cooperative launch; the tensor is read once
    streaming     any set. Two launches; the tensor is read twice, forward and backward

Rows have no clusters, and other sizes: `row_room`.

A cluster's programs wait for one another. That is safe only if all of them run at once, which the
launch makes sure of. The tier is still off until asked for: these kernels never ran on a GPU. They
were compiled, and the compiled code was executed on a CPU. Triton's interpreter runs programs one
after another, so it has no such tier: there, such sets stream.
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

    Sets that fit one program still take that tier; sets too large for a cluster stream.
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
    """The settings that a choice depends on, besides the tensor."""
    return _cooperative, _forced


def first_with_room(
    state: State, geometries: dict[str, Callable[[], Found | None]], what: str
) -> tuple[str, Found]:
    """The first tier that has a geometry for `what`, and that geometry."""
    clusters, forced = state
    for tier in (forced,) if forced else TIERS:
        if tier in geometries and (tier != "cluster" or clusters or forced):
            found = geometries[tier]()
            if found is not None:
                return tier, found
    raise RuntimeError(f"tier {forced!r} has no room for {what}")


def with_fallback(run: Callable[[State], Result | None]) -> Result:
    """The result of `run` in the present state or, if that is None, without clusters: the device
    may turn out to be too small for the launch."""
    result = run(state())
    if result is None:
        result = run(WITHOUT_CLUSTERS)
        assert result is not None
    return result
