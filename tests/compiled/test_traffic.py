"""The memory that compiled kernels touch: tensors as large as x are touched once or twice.

It is counted in the execution, thread by thread; `kernels/test_traffic.py` counts the requests in
the source, in the interpreter's tiers.
"""

import math

import pytest
import torch

from tests.compiled.cases import ADDING, OF_ROWS, Case
from tests.compiled.executor import Emulator, Options
from tests.compiled.trying import compiled_results, tensors_of

# Those of x's size: parameters, statistics and what programs leave for one another are not counted.
# Kernels of channels take "x_ptr", those of rows "t.x".
TENSORS = (
    "x", "addend", "residual", "y", "total", "dy", "dsum", "dx", "dresidual", "bits",
)  # fmt: skip
# The pivots are values of x, of which every warp takes its own.
TOLERANCE = 0.05
SHAPES = {"channels": (4, 8, 64, 96), "rows": (16, 12288)}
# Reads and writes of a tensor of x's size, forward and backward, by what is fused. A mask of a bit
# an element comes on top.
PLAIN, RESIDUAL, ADD, MEANS = (2, 3), (3, 4), (4, 4), (2, 2)
STREAMING = {PLAIN: (3, 5), RESIDUAL: (4, 6), ADD: (5, 6)}


class Large(Case):
    """A case of sets that take several programs."""

    @property
    def shape(self) -> tuple[int, ...]:
        return SHAPES["rows" if self.op in OF_ROWS else "channels"]


CHANNELS = [
    Large(op, fusion=fusion, dtype=torch.bfloat16, tier="streaming", layout=layout)
    for op in ("batch", "group", "instance")
    for layout in ("contiguous", "channels_last")
    for fusion in ("plain", "relu residual")
] + [
    Large(
        op,
        fusion="relu residual",
        dtype=torch.bfloat16,
        tier="streaming",
        layout=layout,
        modulated=True,
    )
    for op in ("batch", "group")
    for layout in ("contiguous", "channels_last")
]
CLUSTERS = [
    Large(op, fusion=fusion, dtype=dtype, tier="cluster")
    for op in ("batch", "group", "instance")
    for fusion, dtype in (("plain", torch.bfloat16), ("relu", torch.float32))
] + [Large("mean_only", dtype=torch.bfloat16, tier="cluster")]
ROWS = [
    Large(op, fusion=fusion, dtype=torch.bfloat16, tier="streaming")
    for op, fusion in (
        ("layer", "plain"),
        ("layer", "relu residual"),
        ("rms", "plain"),
        *((op, "plain") for op in ADDING),
    )
]


def moved(emulator: Emulator, case: Case) -> tuple[int, int]:
    """Bytes of global memory, in sectors of 32, of the forward's and of the backward's launches."""
    emulator.options, emulator.log = Options(count=True), []
    compiled_results(case, tensors_of(case))
    found = [0, 0]
    for name, *_, statistics in emulator.log:
        backward = any(word in name for word in ("backward", "gradient", "row_sums", "row_dx"))
        if name != "add_shares_kernel":
            sectors = statistics.sectors_of.items()
            found[backward] += sum(32 * n for (_, name), n in sectors if plain(name) in TENSORS)
    return found[0], found[1]


def plain(name: str) -> str:
    return name.removeprefix("t.").removesuffix("_ptr")


def parameters() -> list[object]:
    """Those of clusters are quick: nothing else counts what they move."""
    slow = {"streaming": pytest.mark.slow}
    return [
        pytest.param(case, id=str(case), marks=slow.get(case.tier, ()))
        for case in (*CHANNELS, *CLUSTERS, *ROWS)
    ]


@pytest.mark.parametrize("case", parameters())
def test_floor(emulator: Emulator, case: Case) -> None:
    """No less either: else a pass went unseen."""
    alone = MEANS if case.op == "mean_only" else PLAIN
    fused = ADD if case.op in ADDING else RESIDUAL if case.has_residual else alone
    floors = STREAMING[fused] if case.tier == "streaming" else fused
    elements = math.prod(case.shape)
    mask = elements // 8 if case.activation == "relu" and case.has_residual else 0
    masks = (1, 2 if case.tier == "streaming" else 1)
    for found, floor, reads in zip(moved(emulator, case), floors, masks, strict=True):
        least = floor * elements * case.dtype.itemsize + reads * mask
        assert least <= found <= least * (1 + TOLERANCE), f"{found / least:.3f} of the floor"
