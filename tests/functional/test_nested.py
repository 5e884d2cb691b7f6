"""Layer and RMS norm of nested tensors, against each sample's own norm in float64."""

import pytest
import torch
import torch.nn.functional as TF

import fastnorm
import fastnorm.functional as F
from tests.conftest import BACKENDS, DEVICE, assert_close, make_input, running

LAYOUTS = (torch.jagged, torch.strided)
LENGTHS = (2, 1, 5)
REST = (3, 4)  # the sizes that all samples have


def samples(seed=0):
    return [make_input((n, *REST), seed=10 * seed + i) for i, n in enumerate(LENGTHS)]


def nested(layout, seed=0):
    return torch.nested.nested_tensor(samples(seed), layout=layout, requires_grad=True)


def with_offsets_of(other, seed):
    """A jagged tensor whose sizes are known to be the other's; strided ones are compared."""
    if other.layout == torch.strided:
        return nested(torch.strided, seed)
    values = torch.cat(samples(seed)).requires_grad_()
    return torch.nested.nested_tensor_from_jagged(values, other.offsets())


def truth(norm, x, weight, bias, residual=None, activation=None):
    shape = weight.shape
    if norm == "layer":
        y = TF.layer_norm(x, shape, weight, bias)
    else:
        y = TF.rms_norm(x, shape, weight, 1e-5)
    y = y if residual is None else y + residual
    return y if activation is None else getattr(TF, activation)(y)


def parameters(shape):
    weight = make_input(shape, seed=98).abs() + 0.5
    return weight.requires_grad_(), make_input(shape, seed=99).requires_grad_()


def apply(norm, x, weight, bias, **options):
    if norm == "layer":
        return F.layer_norm(x, weight.shape, weight, bias, **options)
    return F.rms_norm(x, weight.shape, weight, 1e-5, **options)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_sample_by_itself(backend, layout, norm, dims, fused):
    """Values and gradients; the same layout and sizes; with the residual and activation too."""
    x, (weight, bias) = nested(layout), parameters(REST[-dims:])
    options = {"activation": "silu", "residual": with_offsets_of(x, 1)} if fused else {}
    with running(backend):
        y = apply(norm, x, weight, bias, **options)
        assert y.is_nested and y.layout == layout
        (y * y).values().sum().backward()
    xs = [t.requires_grad_() for t in samples()]
    others = samples(1) if fused else [None] * len(xs)
    twin_weight, twin_bias = parameters(REST[-dims:])
    expected = [
        truth(norm, t, twin_weight, twin_bias, r, "silu" if fused else None)
        for t, r in zip(xs, others, strict=True)
    ]
    sum(t.square().sum() for t in expected).backward()
    for mine, exact, grad, t in zip(y.unbind(), expected, x.grad.unbind(), xs, strict=True):
        assert_close(mine, exact)
        assert_close(grad, t.grad)
    assert_close(weight.grad, twin_weight.grad)
    if norm == "layer":
        assert_close(bias.grad, twin_bias.grad)
    assert (y + x).is_nested  # of sizes that torch knows to be the same


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_of_a_sum(backend, layout, norm):
    x, (weight, bias) = nested(layout), parameters(REST[-1:])
    other = with_offsets_of(x, 1)
    with running(backend):
        if norm == "layer":
            y, total = F.add_layer_norm(x, other, REST[-1:], weight, bias)
        else:
            y, total = F.add_rms_norm(x, other, REST[-1:], weight, 1e-5)
    for mine, added, a, b in zip(y.unbind(), total.unbind(), samples(), samples(1), strict=True):
        assert_close(added, a + b)
        assert_close(mine, truth(norm, a + b, weight, bias))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_ragged_dimension_elsewhere(backend, layout):
    """Transposed, samples of (3, n, 4)."""
    weight, bias = parameters(REST[-1:])
    with running(backend):
        y = F.layer_norm(nested(layout).transpose(1, 2), REST[-1:], weight, bias)
    for mine, t in zip(y.unbind(), samples(), strict=True):
        assert_close(mine, truth("layer", t.transpose(0, 1), weight, bias))


@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm"])
def test_modules_and_torch_compile(kind):
    """One graph for other numbers of rows."""
    module = getattr(fastnorm, kind)(REST[-1], device=DEVICE, dtype=torch.float64)
    run = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    with fastnorm.use_backend("cpu"):
        for seed in (0, 1):
            x = nested(torch.jagged, seed)
            assert_close(run(x).values(), module(x).values())


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_refusals(backend, layout):
    x = nested(layout)
    jagged = nested(torch.jagged)
    with running(backend, launches=False):
        with pytest.raises(RuntimeError, match="last dimensions"):
            F.layer_norm(x, (2, *REST))  # the sizes that differ
        with pytest.raises(ValueError, match="last dimensions"):  # torch.nn.RMSNorm's class
            F.rms_norm(x.transpose(1, 2).transpose(2, 3), (2,))
        with pytest.raises(RuntimeError, match="residual"):
            F.layer_norm(x, REST, residual=jagged if layout == torch.jagged else samples()[0])
        with pytest.raises(RuntimeError, match=r"weight of shape \(3,\)"):
            F.layer_norm(x, REST[-1:], torch.ones(3, dtype=torch.float64, device=DEVICE))
