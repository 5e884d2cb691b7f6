"""Every activation: its name, values and gradients, and the data kept for its backward."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as TF

import fastnorm
import fastnorm.functional as F
from fastnorm.activations import NAMES, WITH_MASK, canonical, parsed
from fastnorm.kernels.activation import keeps_mask
from fastnorm.kernels.cpu import calls
from tests.conftest import (
    BACKENDS,
    LAYOUTS,
    assert_no_worse,
    combinations,
    make_input,
    running,
)

# By torch's own functions, of which each is checked in float64.
TORCHS = {
    "relu": TF.relu,
    "silu": TF.silu,
    "gelu": TF.gelu,
    "gelu_tanh": lambda z: TF.gelu(z, approximate="tanh"),
    "hardswish": TF.hardswish,
    "mish": TF.mish,
    "leaky_relu": TF.leaky_relu,
    "leaky_relu(0.2)": lambda z: TF.leaky_relu(z, 0.2),
    "leaky_relu(-1.5)": lambda z: TF.leaky_relu(z, -1.5),
    "elu": TF.elu,
    "elu(1.5)": lambda z: TF.elu(z, 1.5),
}
FURTHER = [name for name in TORCHS if name not in ("relu", "silu", "gelu")]
SHAPE = (3, 8, 5, 6)


def test_the_tables_are_whole():
    """This file's, and what the kernels and the engine in C say again of names."""
    assert {parsed(canonical(name, "")).name for name in TORCHS} == set(NAMES)
    assert [name for name in NAMES if keeps_mask(name)] == list(WITH_MASK)
    assert set(calls.ACTIVATIONS) == {"", *NAMES}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ("mish", "mish"),
        ("leaky_relu", "leaky_relu(0.01)"),
        ("leaky_relu(0.2)", "leaky_relu(0.2)"),
        (("leaky_relu", 0.2), "leaky_relu(0.2)"),
        (["leaky_relu", 0.2], None),
        (("elu", 2), "elu(2.0)"),
        (fastnorm.Activation("elu", 0.5), "elu(0.5)"),
        ("elu()", None),
        ("elu(1", None),
        ("relu(1)", None),
        (("relu", 1.0), None),
        (("elu", float("nan")), None),
        (("elu", "1"), None),
        (("elu",), None),
        ("tanh", None),
        (3, None),
        (("leaky_relu", None), None),
    ],
)
def test_names(given, expected):
    """One name for each, and ValueError, with the choices, for anything else."""
    if given is None or expected is not None:
        assert canonical(given, "layer_norm") == expected
        assert fastnorm.LayerNorm(3, activation=given).activation == expected
        return
    x = torch.ones(2, 3, 4)
    for call in (
        lambda: fastnorm.LayerNorm(3, activation=given),
        lambda: F.layer_norm(x, (4,), activation=given),
        lambda: F.group_norm(x, 1, activation=given),
        lambda: F.batch_norm(x, None, None, training=True, activation=given),
        lambda: fastnorm.MomentNorm(activation=given),
    ):
        with pytest.raises(ValueError, match=r"choose None or one of relu, .*leaky_relu"):
            call()


def results(norm, x, dy, residual, weight, bias, activation):
    """y and the gradients of an activation, fused where it has a name, else a function of torch."""
    leaves = [x, weight, bias, *([] if residual is None else [residual])]
    leaves = [t.detach().clone().requires_grad_() for t in leaves]
    x, weight, bias, *others = leaves
    other = others[0] if others else None
    fused = {} if callable(activation) else {"activation": activation, "residual": other}
    functional = TF if callable(activation) else F
    if norm == "group":
        y = functional.group_norm(x, 2, weight, bias, **fused)
    else:
        y = functional.layer_norm(x, x.shape[-1:], weight, bias, **fused)
    if callable(activation):
        y = activation(y if other is None else y + other)
    return y.detach(), *torch.autograd.grad(y, leaves, dy)


@pytest.mark.parametrize(
    ("backend", "activation", "norm", "layout", "with_residual"),
    combinations(
        BACKENDS, FURTHER, ("group", "layer"), LAYOUTS, (False, True),
        quick=lambda activation, norm, layout, residual: (
            (layout == "contiguous" and (norm == "group") == residual)
            or (activation == "leaky_relu(0.2)" and norm == "group")
        ),
    ),
)  # fmt: skip
def test_values_and_gradients(backend, activation, norm, layout, with_residual):
    """Within twice torch's own error of float64, at every dtype."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x, dy, residual = (
            make_input(SHAPE, layout, dtype=dtype, seed=seed, std=3.0) for seed in (0, 8, 7)
        )
        residual = residual if with_residual else None
        size = SHAPE[1] if norm == "group" else SHAPE[-1]
        weight = make_input((size,), dtype=dtype, seed=3, mean=1.0, std=0.3)
        bias = make_input((size,), dtype=dtype, seed=4)
        given = (x, dy, residual, weight, bias)
        wide = [None if t is None else t.double() for t in given]
        truth = results(norm, *wide, TORCHS[activation])
        torchs = results(norm, *given, TORCHS[activation])
        with running(backend):
            ours = results(norm, *given, activation)
        for mine, theirs, exact in zip(ours, torchs, truth, strict=True):
            assert mine.dtype == dtype
            assert_no_worse(mine, theirs, exact)


@pytest.mark.parametrize("with_residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("activation", FURTHER)
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
def test_far_values(backend, activation, with_residual):
    """What is no number, infinite or large goes through as torch has it, to float32's rounding; a
    gradient that torch loses on the way to a limit may be the limit."""
    far = [float("nan"), float("inf"), 1e30, 1e4, 88.0, 20.0, 3.0, 1e-8, 0.0]
    x = torch.tensor(far + [-value for value in far]).view(1, 1, -1).repeat(2, 3, 1)
    zero, one = torch.zeros(3), torch.ones(3)
    residual = torch.zeros_like(x) if with_residual else None
    z = x.clone().requires_grad_()
    expected = TORCHS[activation](z)
    (dz,) = torch.autograd.grad(expected, z, torch.ones_like(z))
    x.requires_grad_()
    with running(backend):  # by constants that change nothing
        y = F.batch_norm(x, zero, one, eps=1e-30, activation=activation, residual=residual)
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(x))
    close = {"rtol": 1e-5, "atol": 1e-6, "equal_nan": True}
    assert torch.allclose(y, expected, **close)
    known = dz.isfinite() | ~dx.isfinite()
    assert torch.allclose(dx[known], dz[known], **close)
    assert torch.isin(dx[~known], torch.tensor([0.0, 1.0])).all()


@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_what_is_kept(backend, activation):
    """After a residual a bit for each element where its sign is all; else the residual itself."""
    x, residual = (make_input(SHAPE, requires_grad=True, seed=seed) for seed in (0, 7))
    kept: list[torch.Tensor] = []
    with running(backend), torch.autograd.graph.saved_tensors_hooks(kept.append, lambda t: t):
        F.group_norm(x, 2, activation=activation, residual=residual)
    masks = [t for t in kept if t is not None and t.dtype == torch.uint8]
    whole = [t for t in kept if t is not None and t.shape == x.shape]
    if activation in WITH_MASK:
        assert len(whole) == 1
        assert [8 * mask.numel() for mask in masks] == [3 * 8 * 32]  # rows of 30 in whole bytes
    else:
        assert len(whole) == 2
        assert not masks


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ["leaky_relu(0.2)", "mish", "elu(1.5)"])
def test_second_derivatives(backend, activation):
    x, residual = (make_input((1, 2, 4), requires_grad=True, seed=seed) for seed in (0, 7))

    def function(x, residual):
        return F.group_norm(x, 1, activation=activation, residual=residual)

    with running(backend):
        assert torch.autograd.gradcheck(function, (x, residual), fast_mode=True)
        assert torch.autograd.gradgradcheck(function, (x, residual), fast_mode=True)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_modules(backend):
    """In repr, copies, pickles and traced programs the parameter stays."""
    norm = fastnorm.GroupNorm(2, 8, activation=("leaky_relu", 0.2))
    assert "activation='leaky_relu(0.2)'" in repr(norm)
    x = make_input(SHAPE, dtype=torch.float32)
    with running(backend):
        expected = norm(x)
        for other in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
            assert torch.equal(other(x), expected)
        traced = torch.compile(norm, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(traced, expected)
    assert not torch.equal(expected, fastnorm.GroupNorm(2, 8, activation="leaky_relu")(x))
