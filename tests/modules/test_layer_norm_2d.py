"""Layer norm over the channels of images, at each position."""

import pytest
import torch
from torch import fx, nn

import fastnorm
from tests.conftest import BACKENDS, DEVICE, LAYOUTS, assert_close, make_input, running

N, C, H, W = SHAPE = (3, 6, 4, 5)


def made(dtype=torch.float64, **kwargs):
    norm = fastnorm.LayerNorm2d(C, device=DEVICE, dtype=dtype, **kwargs)
    for i, parameter in enumerate(norm.parameters()):
        parameter.data = make_input((C,), dtype=dtype, seed=i, mean=1.0, std=0.3)
    return norm


def expected_of(norm, x):
    """In torch's functions, and with the channels where those of rows want them."""
    mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    y = (x - mean) / (var + norm.eps).sqrt()
    y = y if norm.weight is None else y * norm.weight[:, None, None]
    return y if norm.bias is None else y + norm.bias[:, None, None]


@pytest.mark.parametrize("kwargs", [{}, {"bias": False}, {"elementwise_affine": False},
                                    {"eps": 0.1}], ids=str)  # fmt: skip
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients(backend, layout, kwargs):
    norm = made(**kwargs)
    x = make_input(SHAPE, layout, mean=2.0, requires_grad=True)
    leaves, dy = (x, *norm.parameters()), make_input(SHAPE, seed=5)
    expected = expected_of(norm, x)
    with running(backend):
        y = norm(x)
        found = torch.autograd.grad(y, leaves, dy)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y, expected)
    for mine, exact in zip(found, torch.autograd.grad(expected, leaves, dy), strict=True):
        assert_close(mine, exact)


@pytest.mark.parametrize("backend", BACKENDS)
def test_residual_activation_and_modulation(backend):
    norm, x, residual = made(activation="silu"), make_input(SHAPE), make_input(SHAPE, seed=1)
    scale, shift = (make_input((N, C), seed=seed) for seed in (2, 3))
    expected = expected_of(norm, x) * (1 + scale[..., None, None]) + shift[..., None, None]
    with running(backend):
        assert_close(norm(x, residual), nn.functional.silu(expected_of(norm, x) + residual))
        assert_close(
            norm(x, residual, scale=scale, shift=shift), nn.functional.silu(expected + residual)
        )


def test_it_is_a_layer_norm_of_the_channels():
    norm = fastnorm.LayerNorm2d(C, zero_centered=True)
    assert isinstance(norm, nn.LayerNorm) and norm.eps == 1e-6
    rows = repr(fastnorm.LayerNorm(C, 1e-6, zero_centered=True))
    assert repr(norm) == rows.replace("LayerNorm", "LayerNorm2d")
    assert list(norm.state_dict()) == ["weight", "bias"] and (norm.weight == 0).all()


@pytest.mark.parametrize(("arguments", "words"), [
    ({"input": (N, C, H)}, r"an input of shape \(3, 6, 4\): it needs \(N, 6, H, W\)"),
    ({"input": (N, H, W, C)}, r"an input of shape \(3, 4, 5, 6\)"),
    ({"residual": (N, C, W, H)}, r"residual of shape \(3, 6, 5, 4\).*needs \(3, 6, 4, 5\)"),
    ({"scale": (C,)}, r"scale of shape \(6,\).*needs \(3, 6\)"),
    ({"shift": (N, C, 1, 1)}, r"shift of shape \(3, 6, 1, 1\).*needs \(3, 6\)"),
])  # fmt: skip
def test_other_shapes_are_errors(arguments, words):
    tensors = {name: make_input(shape) for name, shape in ({"input": SHAPE} | arguments).items()}
    with pytest.raises(RuntimeError, match=words):
        made()(**tensors)


def test_it_is_a_leaf_of_a_traced_model():
    model = nn.Sequential(made(), nn.ReLU())
    graph = fx.symbolic_trace(model).graph
    assert [node.op for node in graph.nodes] == [
        "placeholder",
        "call_module",
        "call_module",
        "output",
    ]
