"""Programs that keep all tiles of a set in registers, interpreted, in tiny tiles."""

from math import prod

import pytest
import torch
import triton

import fastnorm.functional as F
from fastnorm.kernels import launch, tilings
from fastnorm.kernels.geometry import Sets, View
from tests.conftest import assert_close, make_input, running
from tests.kernels import traffic
from tests.kernels.test_tiles import Case, check
from tests.kernels.tilings import interpreted, tiny_tilings
from tests.norms import Torch

CASES = [
    Case("in", "contiguous", (2, 3, 5, 11)),  # four tiles of a channel
    Case("in_running", "contiguous", (3, 2, 5, 11)),
    Case("gn", "contiguous", (2, 6, 5, 11), 2),  # four tiles of each of three channels
    Case("gn", "contiguous", (2, 10, 3, 4), 2),  # a channel each, with missing positions
    Case("gn", "contiguous", (2, 10, 2, 4), 2),  # two channels each, one is missing in the last
    Case("gn", "contiguous", (2, 8, 4, 4), 2),  # no element is missing
]


def tiles_for(shape, groups, elements=16):
    """Tiles of so many elements; one tile of a whole set would need more warps."""
    channels = shape[1] // groups if groups else 1
    positions = triton.next_power_of_2(prod(shape[2:]))
    return tiny_tilings(
        ONE_PROGRAM_TILES={triton.next_power_of_2(channels) * positions: 16},
        ONE_WARP_TILE=1,
        SEVERAL_TILES={4: elements},
    )


@interpreted
@pytest.mark.parametrize("fusion", ["plain", "relu"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case} {'x'.join(map(str, case.shape))}")
def test_norms(case, fusion):
    with tiles_for(case.shape, case.groups) as chosen:
        launched = check(case, fusion)
    assert launched == ["several_tiles_kernel", "several_tiles_backward_kernel"]
    assert [tier for tier, _ in chosen] == ["one_program"] * 2
    assert all(geometry.several and geometry.steps > 2 for _, geometry in chosen)


@interpreted
@pytest.mark.parametrize("fusion", ["relu residual", "silu residual"])
@pytest.mark.parametrize("case", CASES[-2:], ids=str)
def test_a_residual(case, fusion):
    """Its backward keeps one tile, as it would read the bits or the residual twice."""
    with tiles_for(case.shape, case.groups):
        launched = check(case, fusion)
    assert launched == ["several_tiles_kernel", "resident_backward_kernel"]


@interpreted
def test_parameters_of_samples():
    x = make_input((2, 10, 3, 4), "contiguous", mean=5.0)
    scale, shift = (torch.randn(2, 10) for _ in range(2))
    with tiles_for(x.shape, 2), running("triton") as launched:
        y = F.group_norm(x, 2, scale=scale, shift=shift, activation="silu")
    assert launched == ["modulate_kernel", "several_tiles_kernel"]
    z = Torch.group_norm(x.double(), 2, None, None)
    z = z * (1 + scale.double())[:, :, None, None] + shift.double()[:, :, None, None]
    assert_close(y, torch.nn.functional.silu(z), "y")


@interpreted
def test_tensors_are_read_once():
    x = make_input((2, 4, 32, 32), "contiguous", mean=5.0, requires_grad=True)
    with tiles_for(x.shape, 2, elements=512), running("triton"):
        with traffic.meter() as forward:
            y = F.group_norm(x, 2)
        with traffic.meter() as backward:
            torch.autograd.grad(y, x, torch.ones_like(y))
    for moved, floor in ((forward, 2 * x.nbytes), (backward, 3 * x.nbytes)):
        assert floor <= moved.total <= 1.03 * floor
        assert len(moved.launches) == 1


@pytest.fixture
def compiled(monkeypatch):
    """The tilings of a GPU."""
    monkeypatch.setattr(launch, "INTERPRETED", False)


# N, C, S, groups (0: each channel by itself), bytes of an element -> warps and tiles, forward and
# backward; "one": one tile, None: too large for one program.
CHOICES = [
    ((8, 320, 4096), 32, 2, (8, 20), (16, 10)),  # the sets of diffusers' largest feature maps
    ((8, 320, 4096), 32, 4, (16, 10), None),
    ((8, 1280, 256), 32, 2, (4, 10), (4, 10)),
    ((8, 512, 1024), 32, 2, (4, 16), (8, 8)),  # one tile would need 16 warps
    ((8, 256, 1024), 32, 2, (4, 8), (4, 8)),  # one tile would need 8
    ((8, 128, 1024), 32, 2, "one", "one"),  # one tile of 4 warps is as good
    ((8, 64, 1024), 32, 2, (2, 4), "one"),
    ((8, 512, 196), 32, 2, (2, 7), (2, 7)),  # many lanes would crowd one tile's registers
    ((8, 1280, 64), 32, 2, (2, 5), (2, 5)),
    ((8, 64, 65536), 0, 2, (16, 16), None),
    ((2, 64, 12544), 0, 2, (4, 13), (8, 7)),
    ((2, 64, 12544), 0, 4, (8, 7), "one"),
    ((64, 64, 1024), 0, 2, "one", "one"),  # of one warp
]


def chosen_for(view, depth, has_residual=False, backward=False):
    """(warps, tiles), "one" or None."""
    found = tilings.one_program(view, Sets(depth, batch=False, mix=False), has_residual, backward)
    if found is None or not found.several:
        return found and "one"
    kept = found.steps * found.lanes * found.BLOCK_S * view.itemsize * (1 + backward)
    assert kept <= tilings.REGISTERS_OF_TILES * 4 * 32 * found.num_warps
    return found.num_warps, found.steps


@pytest.mark.parametrize(("sizes", "groups", "itemsize", "forward", "backward"), CHOICES)
def test_which_sets_need_several_tiles(compiled, sizes, groups, itemsize, forward, backward):
    view = View(*sizes, channels_last=False, itemsize=itemsize)
    depth = sizes[1] // groups if groups else 1
    assert chosen_for(view, depth) == forward
    assert chosen_for(view, depth, backward=True) == backward


@pytest.mark.parametrize("change", ["residual", "channels last", "large"])
def test_other_sets_stream(compiled, change):
    S = 16384 if change == "large" else 4096
    view = View(8, 320, S, channels_last=change == "channels last", itemsize=2)
    for backward in (False, True):
        assert chosen_for(view, 10, change == "residual", backward) is None
