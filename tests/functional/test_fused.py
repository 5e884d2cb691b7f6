"""Residual and activation inside the norm, against the same steps one after another."""

import pytest
import torch

import fastnorm.functional as F
from tests.conftest import BACKENDS, LAYOUTS, assert_close, make_input, running
from tests.norms import (
    ACTIVATIONS,
    NORMS,
    OF_ROWS,
    Torch,
    call,
    double,
    make_params,
    numpy_activation,
    numpy_norm,
)


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_residual_is_the_input(backend, norm, activation):
    """x + norm(x): both gradients arrive at one tensor."""
    shape = (3, 6, 5)
    x, dy = make_input(shape, requires_grad=True), make_input(shape, seed=8)
    p = make_params(norm, shape)
    truth = torch.autograd.grad(
        call(Torch, norm, x, double(p), activation=activation, residual=x), x, dy
    )
    with running(backend):
        y = call(F, norm, x, p, activation=activation, residual=x)
        assert_close(torch.autograd.grad(y, x, dy)[0], truth[0])


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_fused_equals_composed(backend, norm, with_residual, activation):
    shape = (2, 6, 5, 3)
    p = make_params(norm, shape)
    for layout in ("contiguous", "channels_last"):
        x = make_input(shape, layout)
        residual = make_input(shape, layout, seed=7) if with_residual else None
        with running(backend):
            y = call(F, norm, x, p, activation=activation, residual=residual)
        before = numpy_norm(norm, x, p) + (residual if with_residual else 0.0)
        assert_close(y, numpy_activation(before, activation), layout)
        if norm not in OF_ROWS:  # contiguous
            assert y.stride() == x.stride()


@pytest.mark.parametrize("residual_layout", [*LAYOUTS, "expanded"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_residual_in_any_layout(backend, layout, residual_layout):
    shape = (2, 6, 5, 3)
    x, residual = make_input(shape, layout), make_input(shape, residual_layout, seed=7)
    for norm in NORMS:
        p = make_params(norm, shape)
        with running(backend):
            y = call(F, norm, x, p, activation="relu", residual=residual)
        assert_close(y, (numpy_norm(norm, x, p) + residual).clamp(min=0), norm)
