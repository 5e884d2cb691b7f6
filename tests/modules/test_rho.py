"""Batch-instance norm's rho trains under any optimizer loop and never leaves [0, 1].

The published implementations that rebind the parameter in forward freeze it at 1. All loops below
would show that.
"""

import copy

import pytest
import torch

import fastnorm
import fastnorm.functional as F
from tests.conftest import BACKENDS, DEVICE, make_input, running

C = 4
SHAPE = (3, C, 3, 2)


def by_hand(parameters):
    parameters = list(parameters)

    class Loop:
        def step(self):
            for p in parameters:
                p.data -= 0.05 * p.grad

        def zero_grad(self):
            for p in parameters:
                p.grad = None

    return Loop()


LOOPS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=0.05, foreach=True),
    "by hand": by_hand,
}


def module_and_input(rho=1.0):
    module = fastnorm.BatchInstanceNorm2d(C, device=DEVICE)
    module.rho.data.fill_(rho)
    return module, make_input(SHAPE, dtype=torch.float32, mean=1.0)


def drive(module, x, loop, target, steps):
    """Train towards the instance-norm (target 0) or batch-norm (target 1) output."""
    goal = torch.full((C,), target, device=DEVICE)
    with torch.no_grad():
        wanted = F.batch_instance_norm(x, None, None, goal, training=True)
    for _ in range(steps):
        loop.zero_grad()
        (2.0 * (module(x) - wanted).square().sum()).backward()
        loop.step()


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize(("start", "target"), [(1.0, 0.0), (0.0, 1.0), (1.0, 0.4)])
def test_trains_both_ways(name, start, target):
    """From either end (1 is the initial value) the gradient moves rho towards the target."""
    module, x = module_and_input(start)
    drive(module, x, LOOPS[name]([module.rho]), target, steps=12)
    assert ((module.rho - target).abs() < abs(start - target)).all(), module.rho
    assert (module.rho >= 0).all() and (module.rho <= 1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_trains_under_every_backend(backend):
    module, x = module_and_input()
    with running(backend):
        drive(module, x, torch.optim.SGD(module.parameters(), lr=0.002), 0.0, steps=3)
    assert (module.rho < 1).all()


@pytest.mark.parametrize("towards", [0.0, 1.0])
@pytest.mark.parametrize("read", ["attribute", "state_dict", "forward"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_pushed_hard_it_stays_inside(backend, read, towards):
    """A step of +-100 lands on the boundary, whoever looks first."""
    module, x = module_and_input(0.5)
    rho = module.rho  # held by the optimizer, and below by this test: no re-projection on access
    rho.grad = torch.full_like(rho, 1.0 if towards == 0.0 else -1.0)
    torch.optim.SGD([rho], lr=100.0).step()
    if read == "attribute":
        assert (module.rho == towards).all()
    elif read == "state_dict":
        assert (module.state_dict()["rho"] == towards).all()
    else:
        mix = torch.full((C,), towards, device=DEVICE)
        with running(backend):
            assert torch.equal(
                module(x),
                F.batch_instance_norm(
                    x, None, None, mix, module.weight, module.bias, training=True
                ),
            )
    assert (rho == towards).all(), "projected in place: the optimizer's tensor is the module's"


@pytest.mark.parametrize("name", LOOPS)
def test_comes_back_from_the_boundary(name):
    """Pushed past 1, rho must turn around at once: it was projected, not left to wander outside."""
    module, x = module_and_input(1.0)
    module.rho.data.fill_(50.0)
    drive(module, x, LOOPS[name]([module.rho]), 0.0, steps=12)
    assert (module.rho < 1).all()


def test_is_one_leaf_parameter_throughout():
    """Same object, same storage, before and after training, with a gradient of its own."""
    module, x = module_and_input()
    before, address = module.rho, module.rho.data_ptr()
    assert isinstance(before, torch.nn.Parameter) and before.is_leaf and before.requires_grad
    assert before.shape == (C,) and (before == 1).all()
    assert dict(module.named_parameters())["rho"] is before
    drive(module, x, torch.optim.SGD(module.parameters(), lr=0.01), 0.0, steps=2)
    assert module.rho is before and module.rho.data_ptr() == address
    assert before.grad is not None and dict(module.named_parameters())["rho"] is before


def test_projection_is_no_graph_mutation():
    """Reading rho between forward and backward neither bumps its version nor breaks the graph."""
    module, x = module_and_input(0.5)
    y = module(x)
    version = module.rho._version
    _ = module.rho, module.state_dict()
    assert module.rho._version == version
    y.sum().backward()


def test_state_dict_of_a_parent_and_copies():
    """The projection reaches nested state_dicts and deep copies too."""
    inner, _ = module_and_input()
    parent = torch.nn.Sequential(torch.nn.Conv2d(1, C, 3), inner)
    inner._parameters["rho"].data.fill_(7.0)
    assert (parent.state_dict()["1.rho"] == 1).all()
    inner._parameters["rho"].data.fill_(-7.0)
    assert (copy.deepcopy(parent)[1].rho == 0).all()


def test_a_checkpoint_outside_is_projected():
    module, _ = module_and_input()
    state = module.state_dict()
    state["rho"] = torch.tensor([-1.0, 0.25, 2.0, 1.0])
    module.load_state_dict(state)
    assert module.rho.tolist() == [0.0, 0.25, 1.0, 1.0]


def test_rho_exists_without_affine_parameters():
    module = fastnorm.BatchInstanceNorm2d(C, affine=False)
    assert [name for name, _ in module.named_parameters()] == ["rho"]
