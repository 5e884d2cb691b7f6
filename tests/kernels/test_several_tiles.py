"""The forward that keeps all tiles of its set in registers, interpreted, in tiny tiles."""

import pytest
import torch

import fastnorm.functional as F
from fastnorm.kernels import launch, tilings
from fastnorm.kernels.geometry import Sets, View
from tests.conftest import assert_close, make_input, running
from tests.kernels import traffic
from tests.kernels.test_tiles import Case, check
from tests.kernels.tilings import interpreted, tiny_tilings
from tests.norms import Torch

SIXTEEN = {"ONE_PROGRAM_TILES": {}, "ONE_WARP_TILE": 1, "SEVERAL_TILES": {4: 16}, "FEWEST_SETS": 1}
CASES = [
    Case("in", "contiguous", (2, 3, 5, 11)),  # four tiles of a channel
    Case("in_running", "contiguous", (3, 2, 5, 11)),
    Case("gn", "contiguous", (2, 6, 5, 11), 2),  # four tiles of each of three channels
    Case("gn", "contiguous", (2, 10, 3, 4), 2),  # a channel each, with missing positions
    Case("gn", "contiguous", (2, 10, 2, 4), 2),  # two channels each, one is missing in the last
    Case("gn", "contiguous", (2, 8, 4, 4), 2),  # no element is missing
]


@interpreted
@pytest.mark.parametrize("fusion", ["plain", "relu"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case} {'x'.join(map(str, case.shape))}")
def test_forward(case, fusion):
    """The statistics that it keeps serve a backward in two launches."""
    with tiny_tilings(**SIXTEEN) as chosen:
        launched = check(case, fusion)
    assert launched == ["several_tiles_kernel", "gradient_sums_kernel", "apply_backward_kernel"]
    tier, geometry = chosen[0]
    assert tier == "one_program" and geometry.several and geometry.steps > 2


@interpreted
def test_parameters_of_samples():
    x = make_input((2, 10, 3, 4), "contiguous", mean=5.0)
    scale, shift = (torch.randn(2, 10) for _ in range(2))
    with tiny_tilings(**SIXTEEN), running("triton") as launched:
        y = F.group_norm(x, 2, scale=scale, shift=shift, activation="silu")
    assert launched == ["modulate_kernel", "several_tiles_kernel"]
    z = Torch.group_norm(x.double(), 2, None, None)
    z = z * (1 + scale.double())[:, :, None, None] + shift.double()[:, :, None, None]
    assert_close(y, torch.nn.functional.silu(z), "y")


@interpreted
def test_a_forward_reads_its_tensor_once():
    x = make_input((2, 4, 32, 32), "contiguous", mean=5.0)
    larger = SIXTEEN | {"SEVERAL_TILES": {4: 512}}
    with tiny_tilings(**larger), running("triton"), traffic.meter() as forward:
        F.group_norm(x, 2)
    assert 2 * x.nbytes <= forward.total <= 2.03 * x.nbytes
    assert len(forward.launches) == 1


@pytest.fixture
def compiled(monkeypatch):
    """The tilings of a GPU."""
    monkeypatch.setattr(launch, "INTERPRETED", False)


# N, C, S, groups (0: each channel by itself), bytes of an element -> warps and tiles; None: one.
CHOICES = [
    ((8, 320, 4096), 32, 2, (8, 20)),  # the sets of diffusers' largest feature maps
    ((8, 320, 4096), 32, 4, (16, 10)),
    ((8, 1280, 256), 32, 2, (4, 10)),
    ((8, 512, 1024), 32, 2, (4, 16)),  # one tile would need 16 warps
    ((8, 256, 1024), 32, 2, (4, 8)),  # one tile would need 8
    ((8, 64, 1024), 32, 2, None),  # one tile of 4 warps is as good
    ((8, 1280, 64), 32, 2, (4, 3)),  # one tile would be of 4,096 elements, 1,536 of them missing
    ((8, 64, 65536), 0, 2, (16, 16)),
    ((2, 64, 12544), 0, 2, (4, 13)),
    ((2, 64, 12544), 0, 4, (8, 7)),
]


@pytest.mark.parametrize(("sizes", "groups", "itemsize", "expected"), CHOICES)
def test_which_sets_need_several_tiles(compiled, sizes, groups, itemsize, expected):
    view = View(*sizes, channels_last=False, itemsize=itemsize)
    sets = Sets(sizes[1] // groups if groups else 1, batch=False, mix=False)
    found = tilings.one_program(view, sets, has_residual=False, backward=False)
    assert found is not None
    assert ((found.num_warps, found.steps) if found.several else None) == expected
    if expected is not None:
        kept = found.steps * found.lanes * found.BLOCK_S * itemsize
        assert kept <= tilings.REGISTERS_OF_TILES * 4 * 32 * found.num_warps


@pytest.mark.parametrize("change", ["residual", "backward", "channels last", "few sets", "large"])
def test_other_sets_stream(compiled, change):
    N = 1 if change == "few sets" else 8
    S = 16384 if change == "large" else 4096
    view = View(N, 320, S, channels_last=change == "channels last", itemsize=2)
    residual, backward = change == "residual", change == "backward"
    assert tilings.one_program(view, Sets(10, False, False), residual, backward) is None
