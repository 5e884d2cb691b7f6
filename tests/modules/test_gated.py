"""GatedRMSNorm: its parameters, its calls, and other duties of a module."""

import copy
import pickle

import pytest
import torch
from torch import fx, nn

import fastnorm
import fastnorm.functional as F
from fastnorm.backend import use_backend
from tests.conftest import DEVICE, assert_close

D = 12


def inputs():
    torch.manual_seed(0)
    return tuple(torch.randn(3, 5, D, device=DEVICE) for _ in range(2))


def module(**options):
    norm = fastnorm.GatedRMSNorm(D, device=DEVICE, **options)
    nn.init.normal_(norm.weight)
    return norm


@pytest.mark.parametrize("norm_before_gate", [False, True])
@pytest.mark.parametrize("group_size", [None, 4])
def test_is_the_function(group_size, norm_before_gate):
    norm, (x, gate) = module(group_size=group_size, norm_before_gate=norm_before_gate), inputs()
    with use_backend("reference"):
        y = norm(x, gate)
        assert torch.equal(
            y,
            F.gated_rms_norm(
                x, gate, norm.weight, group_size=group_size, norm_before_gate=norm_before_gate
            ),
        )
        y.sum().backward()
    assert norm.weight.grad is not None and norm.weight.grad.shape == (D,)


@pytest.mark.parametrize("backend", ["triton", "torch", "reference"])
def test_without_a_gate_it_is_rms_norm(backend):
    norm, (x, _) = module(), inputs()
    rms = nn.RMSNorm(D, eps=1e-5, device=DEVICE)
    rms.load_state_dict(norm.state_dict())
    with use_backend(backend):
        assert_close(norm(x), rms.double()(x.double()))


def test_its_state_is_a_weight_of_ones():
    norm = fastnorm.GatedRMSNorm(D, eps=1e-3, group_size=4, norm_before_gate=True)
    assert list(norm.state_dict()) == ["weight"]
    assert torch.equal(norm.weight, torch.ones(D))
    assert repr(norm) == "GatedRMSNorm(12, eps=0.001, group_size=4, norm_before_gate=True)"
    assert fastnorm.GatedRMSNorm(D, dtype=torch.bfloat16).weight.dtype == torch.bfloat16


@pytest.mark.parametrize("group_size", [0, 5, -3])
def test_groups_have_to_divide(group_size):
    with pytest.raises(RuntimeError, match=f"GatedRMSNorm got group_size={group_size}"):
        fastnorm.GatedRMSNorm(D, group_size=group_size)


def test_copies_and_pickles():
    norm, (x, gate) = module(group_size=4), inputs()
    with use_backend("reference"):
        for other in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
            assert torch.equal(other(x, gate), norm(x, gate))


def test_is_a_leaf_to_tracers():
    graph = fx.symbolic_trace(nn.Sequential(module())).graph
    assert [node.op for node in graph.nodes] == ["placeholder", "call_module", "output"]


def test_torch_script_is_refused():
    with pytest.raises(RuntimeError, match="cannot compile GatedRMSNorm"):
        torch.jit.script(module())


def test_has_no_weight_decay():
    assert fastnorm.no_decay_parameters(nn.Sequential(module(), nn.Linear(D, D))) == {
        "0.weight", "1.bias",
    }  # fmt: skip


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("norm_before_gate", [False, True])
def test_traced_it_is_the_formula(norm_before_gate, backend):
    """Whatever the backend, a whole graph of PyTorch's own operators."""
    norm, (x, gate) = module(group_size=4, norm_before_gate=norm_before_gate), inputs()
    x.requires_grad_()
    with use_backend("reference"):
        exact = norm(x, gate)
        (exact_dx,) = torch.autograd.grad(exact.sum(), x)
    with use_backend(backend):
        compiled = torch.compile(norm, backend="aot_eager", fullgraph=True)
        y = compiled(x, gate)
        (dx,) = torch.autograd.grad(y.sum(), x)
        program = torch.export.export(norm, (x.detach(), gate))
    assert_close(y, exact)
    assert_close(dx, exact_dx)
    assert_close(program.module()(x, gate), exact)
