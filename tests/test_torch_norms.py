"""The backend "torch": torch's own norms, and the formula if torch has none."""

import pytest
import torch

import fastnorm.functional as F
from tests.conftest import DEVICE, assert_close, make_input, running
from tests.norms import NORMS, STATS, Torch, double, forward_backward, make_params

SHAPE = (3, 6, 5, 4)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_values_gradients_and_statistics(norm, fused, layout):
    x = make_input(SHAPE, layout, requires_grad=True)
    p = make_params(norm, SHAPE, requires_grad=True)
    dy = make_input(SHAPE, seed=8)
    extras = {}
    if fused:
        extras = {"activation": "relu", "residual": make_input(SHAPE, layout, seed=7)}
    twin, wide = x.detach().clone().requires_grad_(), double(p, requires_grad=True)
    truth = forward_backward(Torch, norm, twin, wide, dy, **extras)
    with running("torch"):
        ours = forward_backward(F, norm, x, p, dy, **extras)
    for name, exact in truth.items():
        assert_close(ours[name], exact, name)
    for name in STATS:
        if p[name] is not None:
            assert_close(p[name], wide[name], name)


def test_what_is_torchs_own(monkeypatch):
    """Batch norm goes to torch.nn.functional's."""
    called = []
    batch_norm = torch.nn.functional.batch_norm
    monkeypatch.setattr(
        torch.nn.functional, "batch_norm", lambda *a: called.append(a) or batch_norm(*a)
    )
    with running("torch"):
        F.batch_norm(make_input(SHAPE), None, None, training=True)
    assert called


def test_sums_weights_and_moments():
    x, residual = make_input(SHAPE), make_input(SHAPE, seed=7)
    g = torch.full((3, 1, 1, 1), 2.0, dtype=x.dtype, device=DEVICE)
    with running("torch"):
        y, total = F.add_layer_norm(x, residual, (4,))
        w = F.weight_norm(x, g)
        centred = F.moment_norm(x, lambda mean, var, count: (1.0, mean, 0.0))
    assert torch.equal(total, x + residual)
    assert_close(y, torch.nn.functional.layer_norm(x + residual, (4,)))
    assert_close(w, 2.0 * x / x.flatten(1).norm(dim=1).view(3, 1, 1, 1))
    assert_close(centred, x - x.mean((2, 3), keepdim=True))


def test_an_empty_batch():
    x = make_input((0, 6, 5, 4), requires_grad=True)
    with running("torch"):
        y = F.group_norm(x, 2)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
