"""Hooks: they see the same as hooks of torch's modules, and may change it."""

import pytest
import torch
from torch import nn

from tests.conftest import assert_close, make_input, running
from tests.modules.cases import BIN, MODULES, SHAPES, TWINS_2D, make, shape_of


def observed(module, x, residual):
    """What every kind of hook is handed in one forward and backward, as text and tensors."""
    seen = []

    def note(what):
        def hook(module, *arguments):
            tensors = [t for a in arguments for t in (a if isinstance(a, tuple) else (a,))]
            seen.extend((what, t) for t in tensors if torch.is_tensor(t))

        return hook

    module.register_forward_pre_hook(note("forward pre"))
    module.register_forward_hook(note("forward"))
    module.register_full_backward_pre_hook(note("backward pre"))
    module.register_full_backward_hook(note("backward"))
    x = x.clone().requires_grad_()
    arguments = (x,) if residual is None else (x, residual.clone().requires_grad_())
    module(*arguments).pow(3).mean().backward()
    return [*seen, *(("gradient", a.grad) for a in arguments)]


class WithResidual(nn.Module):
    """relu(norm(x) + residual) by torch's modules, for the hooks of a call with two inputs."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x, residual):
        return torch.relu(self.norm(x) + residual)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", TWINS_2D)
@pytest.mark.parametrize("backend", ["triton", "cpu"])
def test_hooks_see_what_torchs_do(backend, name, fused):
    x = make_input(shape_of(name))
    residual = make_input(shape_of(name), seed=7) if fused else None
    ours = make(name, activation="relu" if fused else None)
    theirs = WithResidual(make(name, nn)) if fused else make(name, nn)
    expected = observed(theirs, x, residual)
    with running(backend):
        found = observed(ours, x, residual)
    assert [what for what, _ in found] == [what for what, _ in expected]
    assert {what for what, _ in found} >= {"forward pre", "forward", "backward pre", "backward"}
    for (what, mine), (_, exact) in zip(found, expected, strict=True):
        assert_close(mine, exact, what, slack=1e-12)


def test_a_forward_hook_may_replace_input_and_output():
    module = make("BatchInstanceNorm2d")
    x = make_input(SHAPES[2])
    expected = module(x * 2) + 1
    module.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    module.register_forward_hook(lambda module, args, y: y + 1)
    assert_close(module(x), expected)


@pytest.mark.parametrize("name", MODULES)
def test_state_dict_hooks(name):
    """They run once each, on saving after rho was projected, and may add to what is saved."""
    module, calls = make(name), []
    if name in BIN:
        module._parameters["rho"].data.fill_(3.0)

    def after(module, state, prefix, metadata):
        assert "rho" not in state or (state["rho"] == 1).all()
        state["extra"] = torch.zeros(1)

    module.register_state_dict_pre_hook(lambda *args: calls.append("before"))
    module.register_state_dict_post_hook(after)
    module.register_load_state_dict_pre_hook(lambda *args: calls.append("load"))
    module.register_load_state_dict_post_hook(lambda *args: calls.append("loaded"))
    state = module.state_dict()
    assert state.pop("extra").numel() == 1
    module.load_state_dict(state)
    assert calls == ["before", "load", "loaded"]
