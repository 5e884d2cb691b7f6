"""Parametrizations of weight and rho, and a rho that is not the module's parameter."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from tests.conftest import BACKENDS, DEVICE, assert_close, make_input, running
from tests.modules.cases import SHAPES, TWINS_2D, make, randomised, shape_of


class Affine(nn.Module):
    """A parametrization that is neither the identity nor linear in its argument."""

    def forward(self, x):
        return 2 * torch.tanh(x)


class Gate(nn.Module):
    """The one that keeps rho in [0, 1] by itself."""

    def forward(self, x):
        return torch.sigmoid(x)


PARAMETRIZATIONS = {
    "own": lambda m: parametrize.register_parametrization(m, "weight", Affine()),
    "spectral_norm": lambda m: parametrizations.spectral_norm(m, "weight"),
    "weight_norm": lambda m: parametrizations.weight_norm(m, "weight", dim=0),
}


@pytest.mark.parametrize("how", PARAMETRIZATIONS)
@pytest.mark.parametrize("name", TWINS_2D)
@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_parametrized_weight(backend, name, how):
    """Output, the gradient of what the weight is made from, and the checkpoint are torch's."""
    ours, theirs = make(name), randomised(make(name, nn))
    ours.load_state_dict(theirs.state_dict())
    torch.manual_seed(0)  # spectral_norm starts its power iteration from random vectors
    PARAMETRIZATIONS[how](ours)
    torch.manual_seed(0)
    PARAMETRIZATIONS[how](theirs)
    x = make_input(shape_of(name))
    with running(backend):
        y = ours(x)
        y.pow(3).mean().backward()
    expected = theirs(x)
    expected.pow(3).mean().backward()
    assert_close(y, expected)
    pairs = zip(ours.named_parameters(), theirs.named_parameters(), strict=True)
    for (key, mine), (_, exact) in pairs:
        assert mine.grad is not None
        assert_close(mine.grad, exact.grad, key, slack=1e-12)
    theirs.load_state_dict(ours.state_dict())
    parametrize.remove_parametrizations(ours, "weight")
    with running(backend):
        assert_close(ours(x), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_parametrized_rho(backend):
    """The parametrization's value is rho; its original trains freely, outside [0, 1] too."""
    module = make("BatchInstanceNorm2d")
    parametrize.register_parametrization(module, "rho", Gate())
    original = module.parametrizations.rho.original
    original.data.copy_(torch.tensor([-3.0, -0.5, 0.5, 3.0]))
    before = original.detach().clone()
    plain = make("BatchInstanceNorm2d")
    plain.rho.data.copy_(before.sigmoid())
    x = make_input(SHAPES[2])
    with running(backend):
        y, expected = module(x), plain(x)
        y.pow(3).mean().backward(), expected.pow(3).mean().backward()
    assert torch.equal(y, expected)
    slope = before.sigmoid() * (1 - before.sigmoid())
    assert_close(original.grad, plain.rho.grad * slope)
    assert "parametrizations.rho.original" in module.state_dict()
    assert torch.equal(original, before), "what the parametrization is made from was clamped"
    other = make("BatchInstanceNorm2d")
    parametrize.register_parametrization(other, "rho", Gate())
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.rho, module.rho)


def test_a_state_dict_does_not_run_rhos_parametrization():
    """A spectral norm would take a step of its power iteration at each."""
    calls = []

    class Counted(nn.Module):
        def forward(self, x):
            calls.append(1)
            return x

    module = make("BatchInstanceNorm2d")
    parametrize.register_parametrization(module, "rho", Counted())
    calls.clear()
    module.state_dict()
    assert not calls


OUTSIDE = [-2.0, 0.25, 0.75, 3.0]


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_functional_call_projects_rho_without_writing_to_it(backend, requires_grad):
    module, x = make("BatchInstanceNorm2d"), make_input(SHAPES[2])
    given = torch.tensor(OUTSIDE, dtype=torch.float64, device=DEVICE, requires_grad=requires_grad)
    expected = make("BatchInstanceNorm2d")
    expected.rho.data.copy_(given.detach().clamp(0, 1))
    with running(backend):
        y = torch.func.functional_call(module, {"rho": given}, (x,))
        assert torch.equal(y, expected(x))
    assert given.tolist() == OUTSIDE and (module.rho == 1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_computed_rho_is_not_frozen_outside(backend):
    """FSDP's views are such: their gradient is the one that the clamped parameter has."""
    module, x = make("BatchInstanceNorm2d"), make_input(SHAPES[2])
    raw = torch.tensor(OUTSIDE, dtype=torch.float64, device=DEVICE, requires_grad=True)
    with running(backend):
        y = torch.func.functional_call(module, {"rho": raw * 1}, (x,))
        y.pow(3).mean().backward()
        module.rho.data.copy_(raw.detach())
        module(x).pow(3).mean().backward()
    assert torch.equal(raw.grad, module.rho.grad) and (raw.grad != 0).all()


def test_rho_in_functional_transforms():
    """In evaluation: a transform refuses to update running statistics, torch's as well as ours."""
    module, x = make("BatchInstanceNorm2d").eval(), make_input(SHAPES[2])
    values = dict(module.named_parameters())

    def loss(values):
        return torch.func.functional_call(module, values, (x,)).pow(3).mean()

    with running("reference"):
        found = torch.func.grad(loss)({k: v.detach() for k, v in values.items()})
        loss(values).backward()
    for key, parameter in values.items():
        assert_close(found[key], parameter.grad, key)
