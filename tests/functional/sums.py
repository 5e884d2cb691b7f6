"""Calls of add_layer_norm and add_rms_norm for tests, and their truth: torch's two steps."""

import pytest
import torch
import torch.nn.functional as TF

from tests.conftest import (
    BACKENDS,
    make_input,
)

NORMS = ("layer_norm", "rms_norm")
SHAPE = (3, 4, 5)
NAMES = ("x", "residual", "weight", "bias")
each_norm = pytest.mark.parametrize("norm", NORMS)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


class Steps:
    """The two steps, by torch's own operators."""

    @staticmethod
    def add_layer_norm(x, residual, *args):
        return TF.layer_norm(x + residual, *args), x + residual

    @staticmethod
    def add_rms_norm(x, residual, *args):
        return TF.rms_norm(x + residual, *args), x + residual


def make(norm, shape=SHAPE, dtype=torch.float64, layout="contiguous", normalized=None):
    """x, residual, weight and, for layer norm, bias: leaves."""
    x, residual = (make_input(shape, layout, dtype, seed=s, mean=0.5) for s in (0, 7))
    per_element = normalized or shape[-1:]
    count = 2 if norm == "layer_norm" else 1
    parameters = [make_input(per_element, dtype=dtype, seed=s) * 0.3 + 1.1 for s in range(count)]
    return [t.detach().requires_grad_() for t in (x, residual, *parameters)]


def call(functional, norm, leaves, eps=1e-5):
    x, residual, *parameters = leaves
    shape = parameters[0].shape if parameters else x.shape[-1:]
    weight, bias = (*parameters, None, None)[:2]
    affine = (weight, bias) if norm == "layer_norm" else (weight,)
    return getattr(functional, f"add_{norm}")(x, residual, shape, *affine, eps)


def cotangents(x):
    return tuple(make_input(x.shape, dtype=x.dtype, seed=s) for s in (8, 9))


def results(functional, norm, leaves, use=(True, True)):
    """y, the sum, and all gradients of the outputs in `use`, by name."""
    y, total = call(functional, norm, leaves)
    chosen = [out for out, used in zip((y, total), use, strict=True) if used]
    given = [d for d, used in zip(cotangents(leaves[0]), use, strict=True) if used]
    wanted = leaves if use[0] else leaves[:2]
    grads = torch.autograd.grad(chosen, wanted, given)
    named = zip(NAMES, grads, strict=False)
    return {"y": y.detach(), "sum": total.detach(), **dict(named)}


def doubled(leaves):
    return [t.detach().double().requires_grad_() for t in leaves]
