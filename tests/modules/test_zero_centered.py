"""Weights that count from 1: layer and RMS norm and the adding forms, as modules and functions."""

import pytest
import torch
from torch import nn

import fastnorm
import fastnorm.functional as F
from tests.conftest import BACKENDS, assert_close, make_input, running

L = 24
PLAIN = {"layer": fastnorm.LayerNorm, "rms": fastnorm.RMSNorm}
ADDING = {"layer": fastnorm.AddLayerNorm, "rms": fastnorm.AddRMSNorm}


def filled(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    for i, parameter in enumerate(module.parameters()):
        parameter.data = make_input((L,), dtype=dtype, seed=i, std=0.3)
    return module


def gradients(y, *of):
    dy = make_input(y.shape, dtype=y.dtype, seed=9)
    return torch.autograd.grad(y, of, dy)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("backend", BACKENDS)
def test_plain(backend, kind, dtype):
    """Values and gradients of the same norm with 1 + weight, taken in float64."""
    module = filled(PLAIN[kind](L, eps=1e-6, zero_centered=True), dtype)
    x = make_input((5, L), dtype=dtype, requires_grad=True)
    wide = {name: p.detach().double().requires_grad_() for name, p in module.named_parameters()}
    z = x.detach().double().requires_grad_()
    function = nn.functional.layer_norm if kind == "layer" else nn.functional.rms_norm
    expected = function(z, (L,), 1 + wide["weight"], *list(wide.values())[1:], eps=1e-6)
    with running(backend):
        y = module(x)
        assert y.dtype == dtype
        assert_close(y, expected)
        found = gradients(y, x, *module.parameters())
    for mine, exact in zip(found, gradients(expected, z, *wide.values()), strict=True):
        assert mine.dtype == dtype
        assert_close(mine, exact)


@pytest.mark.parametrize("kind", ADDING)
@pytest.mark.parametrize("backend", BACKENDS)
def test_adding(backend, kind):
    module = filled(ADDING[kind](L, zero_centered=True), torch.float64)
    x, residual = (make_input((5, L), seed=seed) for seed in (0, 7))
    with running(backend):
        y, total = module(x, residual)
        weight = 1 + module.weight
        expected = (
            F.layer_norm(total, (L,), weight, module.bias)
            if kind == "layer"
            else F.rms_norm(total, (L,), weight)
        )
    assert torch.equal(total, x + residual)
    assert_close(y, expected)
    assert module.weight.grad is None
    y.sum().backward()
    assert module.weight.grad is not None


@pytest.mark.parametrize("module", [*PLAIN.values(), *ADDING.values()])
def test_modules(module):
    """A new one changes nothing, says so, and cannot become torch.nn's."""
    new = module(L, zero_centered=True)
    assert not new.weight.any()
    new.weight.data.fill_(3)
    new.reset_parameters()
    assert not new.weight.any()
    assert "zero_centered=True" in repr(new)
    assert "zero_centered" not in repr(module(L))
    if module in PLAIN.values():
        with pytest.raises(ValueError, match="zero_centered"):
            fastnorm.revert(nn.Sequential(new))
        back = nn.Sequential(module(L))
        fastnorm.revert(back)
        assert not hasattr(back[0], "zero_centered")


def test_a_bfloat16_weight_keeps_its_digits():
    """1 + 2^-10 is 1 in bfloat16: Gemma adds in float32."""
    module = fastnorm.RMSNorm(L, eps=1e-6, zero_centered=True, dtype=torch.bfloat16)
    module.weight.data.fill_(2**-10)
    x = torch.full((1, L), 1.0)
    x[:, ::2] = -1.0
    y = F.rms_norm(x, (L,), module.weight, 1e-12, zero_centered=True)
    assert torch.allclose(y.abs(), torch.tensor(1 + 2**-10), rtol=1e-6)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_traced(backend):
    module = filled(fastnorm.RMSNorm(L, zero_centered=True), torch.float32)
    x = make_input((5, L), dtype=torch.float32)
    with running(backend):
        expected = module(x)
        traced = torch.compile(module, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(traced, expected)
