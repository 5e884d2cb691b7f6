"""The interpreter with a GPU's tilings: many tiles a program, chunks an instance, and programs.

The interpreter's own tilings are as large as they can be, for speed, so that the merges of tiles
and chunks would otherwise never run without a GPU. On a GPU every other test runs them.
"""

import pytest
import torch

import fastnorm.functional as F
from fastnorm.kernels import launch, rows
from tests.conftest import DEVICE, assert_close, make_input, running
from tests.norms import NORMS, Torch, double, forward_backward, make_params

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="a GPU uses these tilings everywhere")


@pytest.fixture(params=[1, 12, 10**6], ids=["one chunk", "some chunks", "a chunk a tile"])
def gpu_tiles(request, monkeypatch):
    """A GPU's tilings with small tiles; with `param` programs S is split no further."""
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(launch, "GPU_TILE", 1024)
    monkeypatch.setattr(launch, "ENOUGH_PROGRAMS", request.param)
    monkeypatch.setattr(rows, "INTERPRETED", False)
    monkeypatch.setattr(rows, "GPU_TILE", 256)
    monkeypatch.setattr(rows, "LONGEST_TILE", 64)
    monkeypatch.setattr(rows, "LONG_ROW_TILE", 1024)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((2, 3, 2500), "contiguous"), ((2, 70, 7, 5), "channels_last"), ((40, 3, 6), "contiguous")],
    ids=["S > tile", "C > tile", "N"],
)
@pytest.mark.parametrize("norm", NORMS)
def test_merged_tiles_equal_torch(gpu_tiles, norm, shape, layout):
    """Tiles and chunks of unequal counts (the last is a remainder), in both passes."""
    x = make_input(shape, layout, mean=5.0, requires_grad=True)
    ramp = torch.linspace(0, 3, x.numel() // shape[0], dtype=x.dtype).view(1, *shape[1:])
    x = (x.detach() + ramp).requires_grad_()  # each tile has a mean of its own
    residual, dy = make_input(shape, seed=7), make_input(shape, layout, seed=8)
    p = make_params(norm, shape, requires_grad=True)
    theirs = double(p, requires_grad=True)
    kwargs = {"activation": "relu", "residual": residual}
    with running("triton"):
        ours = forward_backward(F, norm, x, p, dy, **kwargs)
    for name, exact in forward_backward(Torch, norm, x, theirs, dy, **kwargs).items():
        # the gradient of rho is a sum of differences of nearly equal x_hat: it cancels
        slack = torch.finfo(x.dtype).eps * x.numel() if name == "rho" else 0.0
        assert_close(ours[name], exact, name, slack)
    for name in ("running_mean", "running_var"):
        if p[name] is not None:
            assert_close(p[name], theirs[name], name)
