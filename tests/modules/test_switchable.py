"""SwitchableNorm against its definition: three statistics, their switches, running statistics."""

import copy

import pytest
import torch

import fastnorm
from tests.conftest import BACKENDS, DEVICE, LAYOUTS, assert_close, make_input, metered, running
from tests.kernels import traffic

SHAPE = (3, 4, 5, 3)
MODULES = {
    2: fastnorm.SwitchableNorm1d, 3: fastnorm.SwitchableNorm1d,
    4: fastnorm.SwitchableNorm2d, 5: fastnorm.SwitchableNorm3d,
}  # fmt: skip


def make(shape=SHAPE, **kwargs):
    module = MODULES[len(shape)](shape[1], **kwargs).to(DEVICE, torch.float64)
    for i, parameter in enumerate(module.parameters()):
        parameter.data += 0.3 * make_input(parameter.shape, seed=40 + i)
    if module.using_bn:
        module.running_mean.copy_(make_input(shape[1:2], seed=50))
        module.running_var.copy_(make_input(shape[1:2], seed=51).abs() + 0.5)
    return module


def definition(module, x):
    """arXiv 1811.07727, equation 3, a statistic at a time."""
    flat = x.reshape(*x.shape[:2], -1)
    dims = [2, (1, 2), (0, 2)]
    stats = [torch.var_mean(flat, d, correction=0, keepdim=True) for d in dims]
    if module.using_bn and not module.training:
        stats[2] = (module.running_var[:, None], module.running_mean[:, None])
    shares = [w.exp() / w.exp().sum() for w in (module.mean_weight, module.var_weight)]
    mean = sum(share * stat[1] for share, stat in zip(shares[0], stats, strict=False))
    var = sum(share * stat[0] for share, stat in zip(shares[1], stats, strict=False))
    y = (flat - mean) / (var + module.eps).sqrt()
    if module.affine:
        y = y * module.weight[:, None] + module.bias[:, None]
    return y.view_as(x)


def results(y, x, module, dy):
    return y, *torch.autograd.grad(y, [x, *module.parameters()], dy)


@pytest.mark.parametrize("kwargs", [{}, {"using_bn": False}, {"affine": False, "eps": 1e-2}])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5), SHAPE, (2, 4, 2, 3, 2)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_its_definition(backend, shape, training, kwargs):
    module = make(shape, **kwargs).train(training)
    exact = copy.deepcopy(module)
    x, also_x = (make_input(shape, requires_grad=True) for _ in range(2))
    dy = make_input(shape, seed=8)
    truth = results(definition(exact, also_x), also_x, exact, dy)
    with running(backend):
        found = results(module(x), x, module, dy)
    for i, (mine, right) in enumerate(zip(found, truth, strict=True)):
        assert_close(mine, right, f"result {i}", slack=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_fused(backend, layout):
    module = make(activation="relu")
    x, residual = make_input(SHAPE, layout), make_input(SHAPE, seed=7)
    exact = (definition(module, x) + residual).relu()
    with running(backend):
        assert_close(module(x, residual), exact)


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("backend", BACKENDS)
def test_running_statistics(backend, momentum):
    """Moving averages, or with None the average of all batches; the variance unbiased."""
    module = make(momentum=momentum)
    batches = [make_input(SHAPE, seed=seed, mean=seed) for seed in range(3)]
    stats = [torch.var_mean(x, (0, 2, 3), correction=1)[::-1] for x in batches]
    with running(backend):
        for x in batches:
            module(x)
    assert module.num_batches_tracked == 3
    for i, buffer in enumerate((module.running_mean, module.running_var)):
        if momentum is None:
            exact = sum(each[i] for each in stats) / 3
        else:
            exact = getattr(make(), ("running_mean", "running_var")[i])
            for each in stats:
                exact = (1 - momentum) * exact + momentum * each[i]
        assert_close(buffer, exact)
        assert not buffer.requires_grad
    module.reset_running_stats()
    assert module.num_batches_tracked == 0 and (module.running_var == 1).all()


@metered
def test_one_pass_for_three_statistics():
    """3 S forward and 5 S backward, as for any one of them."""
    shape = (8, 16, 32, 32)
    x = make_input(shape, dtype=torch.float32, requires_grad=True)
    dy = make_input(shape, dtype=torch.float32, seed=8)
    module = fastnorm.SwitchableNorm2d(16).to(DEVICE)
    with running("triton"):
        with traffic.meter() as forward:
            y = module(x)
        with traffic.meter() as backward:
            torch.autograd.grad(y, [x, *module.parameters()], dy)
    assert 3 <= forward.total / x.nbytes <= 3.09
    assert 5 <= backward.total / x.nbytes <= 5.15


def test_refusals_change_nothing():
    module = make()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    for x, error in (
        (make_input((3, 4, 5)), ValueError),
        (make_input((3, 5, 5, 3)), RuntimeError),
        (make_input((1, 4, 1, 1)), ValueError),
        (make_input(SHAPE).long(), NotImplementedError),
    ):
        with pytest.raises(error):
            module(x)
    with pytest.raises(RuntimeError, match="residual"):
        module(make_input(SHAPE), make_input(SHAPE[1:]))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    empty = module(make_input((0, *SHAPE[1:])))
    assert empty.shape == (0, *SHAPE[1:])
    assert torch.equal(module.running_var, before["running_var"])


def test_repr_and_state():
    module = make(momentum=None, activation="silu")
    assert repr(module) == (
        "SwitchableNorm2d(4, eps=1e-05, momentum=None, affine=True, using_bn=True, "
        "activation='silu')"
    )
    twin = fastnorm.SwitchableNorm2d(4, momentum=None, activation="silu").to(DEVICE, torch.float64)
    twin.load_state_dict(module.state_dict())
    x = make_input(SHAPE)
    assert torch.equal(twin.eval()(x), module.eval()(x))
    assert set(make(using_bn=False).state_dict()) == {"mean_weight", "var_weight", "weight", "bias"}
    meta = fastnorm.SwitchableNorm2d(4, device="meta").to_empty(device=DEVICE)
    meta.reset_parameters()
    fresh = fastnorm.SwitchableNorm2d(4).state_dict()
    assert all(torch.equal(v.cpu(), fresh[k]) for k, v in meta.state_dict().items())
