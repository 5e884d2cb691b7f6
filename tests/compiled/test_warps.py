"""Which axis of a contiguous tile the warps are given, in each Triton: lanes, whose sums are apart.

`arithmetic.LANES_FIRST` puts the axes of a tile in the order that the version wants.
"""

import re
from math import prod
from typing import Any

import pytest
import torch

from fastnorm.kernels.arithmetic import LANES_FIRST
from tests.compiled.cases import Case
from tests.compiled.executor import Emulator, Options, Statistics
from tests.compiled.trying import compiled_results, tensors_of

KERNELS = ("moments_kernel", "apply_kernel", "gradient_sums_kernel", "apply_backward_kernel")
WARPS, BYTES_A_THREAD, THREADS = 4, 16, 32
# The access of a tile, of which Triton's intermediate code names the shape and the layout.
TILE = re.compile(
    r"(?:tt\.load|tt\.store|ttg\.async_copy_global_to_local) [^\n]*"
    r"tensor<(\d+)x(\d+)x\d+x!tt\.ptr<\w+>, #(\w+)>"
)


class Long(Case):
    """Of 8 channels of 2,048 positions: a tile has 4 of them and 4 times 256 positions, a vector of
    each thread of a warp, so that both of the axes that are not contiguous could take the warps."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (2, 8, 4, 512)


CASE = Long("instance", dtype=torch.bfloat16, tier="streaming")


@pytest.fixture
def launched(emulator: Emulator) -> dict[str, tuple[Any, Statistics]]:
    """The compiled kernels of the case, and what each of them did, by name."""
    emulator.options = Options(count=True)
    compiled_results(CASE, tensors_of(CASE))
    assert emulator.log is not None
    return {name: (compiled, statistics) for name, _, compiled, statistics in emulator.log}


def tiles_warps(ttgir: str) -> set[tuple[int, int]]:
    """Of the accesses of tiles, how many warps there are along (outer, lanes)."""
    warps = dict(re.findall(r"#(\w+) = #ttg\.blocked<\{.*warpsPerCTA = \[([\d, ]+)\]", ttgir))
    found = set()
    for first, second, layout in TILE.findall(ttgir):
        along = [int(n) for n in warps[layout].split(",")]
        outer_and_lanes = (1, 0) if LANES_FIRST else (0, 1)
        assert [int((first, second)[i]) for i in outer_and_lanes] == [4, 4], "both could be split"
        found.add((along[outer_and_lanes[0]], along[outer_and_lanes[1]]))
    return found


def test_lanes_are_given_to_warps(launched: dict[str, tuple[Any, Statistics]]) -> None:
    assert tuple(launched) == KERNELS
    for name, (compiled, _) in launched.items():
        assert compiled.metadata.num_warps == WARPS
        assert tiles_warps(compiled.asm["ttgir"]) == {(1, WARPS)}, name


def test_tiles_are_read_and_written_in_whole_vectors(
    launched: dict[str, tuple[Any, Statistics]],
) -> None:
    """By requests of 32 threads with 16 bytes each; these are all that the tensors take."""
    tensor = prod(CASE.shape) * CASE.dtype.itemsize
    for name, reads in (("apply_kernel", 1), ("apply_backward_kernel", 2)):
        _, statistics = launched[name]
        for kind, times in (("load", reads), ("store", 1)):
            sites = [site for which, site in statistics.asked if which == kind]
            whole = [
                statistics.asked[kind, site]
                for site in sites
                if statistics.asked[kind, site]
                == statistics.requests[kind, site] * THREADS * BYTES_A_THREAD
            ]
            assert sum(whole) == times * tensor, f"{name}: {kind}"


def test_passes_without_sums_exchange_nothing(
    launched: dict[str, tuple[Any, Statistics]],
) -> None:
    for name in ("apply_kernel", "apply_backward_kernel"):
        assert launched[name][1].shared_requests == 0, name
