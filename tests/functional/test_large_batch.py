"""Batch norm of large float32 tensors on the aten backend: its own moments, here on small ones."""

import pytest
import torch
from torch.autograd import gradcheck

import fastnorm.functional as F
from fastnorm.aten import builtin, channels
from tests.conftest import assert_close, assert_no_worse, make_input, running
from tests.norms import AFFINE, Torch, call, double, forward_backward, make_params

SHAPE = (4, 6, 5, 7)
pytestmark = pytest.mark.usefixtures("calls")


@pytest.fixture
def calls(monkeypatch):
    """The calls of the function under test, which small tensors do not take by themselves."""
    monkeypatch.setattr(builtin, "LARGE_BATCH", 0)
    monkeypatch.setattr(builtin, "LONG_INSTANCE", 0)
    batch_norm, made = channels.batch_norm, []

    def counted(*args):
        made.append(args)
        return batch_norm(*args)

    monkeypatch.setattr(channels, "batch_norm", counted)
    return made


@pytest.mark.parametrize("affine", AFFINE)
@pytest.mark.parametrize(
    "activation, with_residual", [(None, False), ("relu", True), ("silu", True)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients(dtype, activation, with_residual, affine, calls):
    p = make_params("bn_train", SHAPE, dtype, affine, requires_grad=True)
    x = make_input(SHAPE, dtype=dtype, requires_grad=True)
    dy = make_input(SHAPE, dtype=dtype, seed=8)
    residual = make_input(SHAPE, dtype=dtype, seed=7, requires_grad=True) if with_residual else None
    results = []
    for functional, wide in ((F, False), (Torch, False), (Torch, True)):
        given = double(p, requires_grad=True) if wide else {k: copy(v) for k, v in p.items()}
        tensors = [t if t is None or not wide else leaf(t.double()) for t in (x, residual)]
        fused = {"activation": activation, "residual": tensors[1]}
        with running("cpu"):
            found = forward_backward(
                functional, "bn_train", tensors[0], given, dy.double() if wide else dy, **fused
            )
        results.append(found | {name: given[name] for name in ("running_mean", "running_var")})
    assert calls
    ours, torchs, truth = results
    for name in truth:
        assert_no_worse(ours[name], torchs[name], truth[name], name)


def leaf(t):
    return t.detach().requires_grad_()


def copy(t):
    return None if t is None else t.detach().clone().requires_grad_(t.requires_grad)


def test_gradcheck(calls):
    x = make_input(SHAPE[:3], requires_grad=True)
    p = make_params("bn_train", x.shape, requires_grad=True)

    def function(x, weight, bias):
        return call(F, "bn_train", x, {**p, "weight": weight, "bias": bias})

    with running("cpu"):
        assert gradcheck(function, (x, p["weight"], p["bias"]))
    assert calls


@pytest.mark.parametrize("mean", [5.0, 1e4])
def test_far_means(mean, calls):
    """Beyond 16 standard deviations the whole call is computed in float64."""
    x = make_input(SHAPE, dtype=torch.float32, mean=mean, requires_grad=True)
    p = make_params("bn_train", SHAPE, torch.float32, requires_grad=True)
    dy = make_input(SHAPE, dtype=torch.float32, seed=8)
    truth = forward_backward(
        Torch, "bn_train", leaf(x.double()), double(p, requires_grad=True), dy.double()
    )
    torchs = forward_backward(Torch, "bn_train", x, {k: copy(v) for k, v in p.items()}, dy)
    with running("cpu"):
        ours = forward_backward(F, "bn_train", x, p, dy)
    assert [args[0].dtype for args in calls] == [torch.float32, torch.float64][: 1 + (mean > 16)]
    for name in truth:
        assert_no_worse(ours[name], torchs[name], truth[name], name)


@pytest.mark.parametrize("case", ["half", "channels_last", "evaluation"])
def test_what_is_torchs_own(case, calls):
    dtype = torch.bfloat16 if case == "half" else torch.float32
    x = make_input(SHAPE, "channels_last" if case == "channels_last" else "contiguous", dtype=dtype)
    statistics = torch.zeros(6, device=x.device), torch.ones(6, device=x.device)
    with running("cpu"):
        y = F.batch_norm(x, *statistics, training=case != "evaluation")
    assert not calls
    if case == "evaluation":
        assert_close(y, x.double() / (1 + 1e-5) ** 0.5)


def test_only_large_tensors_take_it(monkeypatch, calls):
    monkeypatch.undo()
    assert builtin.LARGE_BATCH > 0 and builtin.LONG_INSTANCE > 0
    seen = []
    batch_norm = channels.batch_norm
    monkeypatch.setattr(channels, "batch_norm", lambda *a: seen.append(a) or batch_norm(*a))
    for shape in ((64, 64, 16, 16), (63, 64, 16, 16), (512, 64, 8, 8)):
        with running("cpu"):
            F.batch_norm(torch.randn(shape), None, None, training=True)
    assert [args[0].shape for args in seen] == [(64, 64, 16, 16)]
