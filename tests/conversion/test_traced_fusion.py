"""fuse with an example: the model is traced, every pattern found, the given model stays."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as TF

import fastnorm
from tests.conftest import BACKENDS, DEVICE, assert_close, make_input, running
from tests.conversion.models import C, assert_same_results, fingerprint, images, small_net


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_traced_network(backend):
    """Every pattern is found; the model that was given stays, and shares its tensors."""
    twin, net = small_net(), small_net()
    fastnorm.convert(net)
    before, state = fingerprint(net), copy.deepcopy(net.state_dict())
    report = fastnorm.fuse(net, images())
    relu, residual = (
        "BatchNorm2d(activation='relu')",
        "BatchNorm2d(activation='relu') with residual",
    )
    assert {c.name: c.new.removeprefix("fastnorm.") for c in report.changed} == {
        "0.1": relu, "1.bn1": relu, "1.bn2": residual, "2.bn1": relu, "2.bn2": residual,
        "3.n1": "GroupNorm(activation='silu')", "3.n2": relu,
        "4": "InstanceNorm2d(activation='gelu')", "7": "LayerNorm(activation='silu')",
        "11": "BatchNorm1d(activation='relu')",
    }  # fmt: skip
    assert not report.kept and fingerprint(net) == before
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())
    traced = report.model
    assert dict(traced.named_parameters()).keys() == dict(net.named_parameters()).keys()
    mine = {id(t) for t in [*net.parameters(), *net.buffers()]}
    assert {id(t) for t in [*traced.parameters(), *traced.buffers()]} == mine
    assert not any(isinstance(m, nn.ReLU | nn.SiLU | nn.GELU) for m in traced.modules())
    with running(backend):
        assert_same_results(traced, twin, images())
        assert_same_results(traced.eval(), twin.eval(), images(1))
    assert_same_results(net.eval(), twin, images(1))  # the model itself goes on to work
    assert_same_results(copy.deepcopy(traced), twin, images(2))


def test_a_traced_network_folded():
    net = small_net()
    fastnorm.convert(net)
    with torch.no_grad():
        expected = net.eval()(images())
    report = fastnorm.fuse(net, images(), fold=True)
    folded = [c.name for c in report.changed if c.new.startswith("in ")]
    assert not any(m.training for m in report.model.modules())
    assert folded == ["0.1", "1.bn1", "1.bn2", "2.bn1", "2.bn2", "2.shortcut.1", "3.n2", "11"]
    with torch.no_grad():
        assert_close(report.model(images()), expected, slack=1e-12)
        assert_close(net(images()), expected)


class Odd(nn.Module):
    """A forward made of a norm, another tensor and what the case does with them."""

    def __init__(self, forward, norm=None):
        super().__init__()
        self.norm = fastnorm.BatchNorm2d(C) if norm is None else norm
        self.other = nn.Conv2d(C, C, 1)
        self.swish, self.none = Swish(), nn.Identity()
        self.gate = nn.Parameter(torch.ones(1, C, 1, 1))
        self.how = forward

    def forward(self, x):
        return self.how(self, x) + self.other(x) * self.gate


class Swish(nn.Module):
    def forward(self, x):
        return x.mul_(2)


def write_between(m, x):
    x = x * 1
    y = m.norm(x)
    x.mul_(2)
    return TF.relu(y + x)


def write_into_the_other(m, x):
    r = x * 1
    return TF.relu(r.add_(m.norm(x))) + r


def module_between(m, x):
    x = x * 1
    y = m.norm(x)
    z = m.swish(x)
    return TF.relu(y + z)


def read_twice(m, x):
    y = m.norm(x)
    return TF.relu(y) + y


def sum_read_twice(m, x):
    y = m.norm(x) + x
    return TF.relu(y) + y


ODD = {
    "write between": (write_between, "in place"),
    "module between": (module_between, "in place"),
    "broadcast": (lambda m, x: TF.relu(m.norm(x) + m.gate), "another shape"),
    "called twice": (lambda m, x: TF.relu(m.norm(x)) + m.norm(2 * x), "called more than once"),
    "residual there": (lambda m, x: TF.relu(m.norm(x, x)), "more than its input"),
    "write into the other": (write_into_the_other, None),
    "read twice": (read_twice, None),
    "sum read twice": (sum_read_twice, None),
    "twice itself": (lambda m, x: TF.relu(torch.add(*[m.norm(x)] * 2)), None),
    "number added": (lambda m, x: TF.relu(m.norm(x) + 1), None),
    "alpha": (lambda m, x: TF.relu(torch.add(m.norm(x), x, alpha=2)), None),
    "other activation": (lambda m, x: TF.selu(m.norm(x)), None),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_not_fused_in_a_trace(case):
    forward, words = ODD[case]
    model = Odd(forward).to(DEVICE, torch.float64)
    twin, x = copy.deepcopy(model), make_input((3, C, 4, 3))
    report = fastnorm.fuse(model, x)
    assert not report.changed
    assert [k.name for k in report.kept] == (["norm"] if words else [])
    assert words is None or words in report.kept[0].reason
    if words == "in place":  # autograd refuses what the norm has saved to be written to
        with torch.no_grad():
            assert_close(report.model(x), twin(x))
    else:
        assert_same_results(report.model, twin, x)


FUSED = {
    "residual first": lambda m, x: TF.relu(x + m.norm(x)),
    "method": lambda m, x: m.norm(x).add(x).relu(),
    "in place": lambda m, x: TF.relu(m.norm(x).add_(x), inplace=True),
    "residual made later": lambda m, x: TF.silu(torch.add(m.norm(x), TF.relu(m.other(x)))),
    "identities": lambda m, x: m.none(TF.relu(m.none(m.norm(x)) + m.none(x))),
    "exact gelu": lambda m, x: TF.gelu(m.norm(x) + x, approximate="none"),
}


@pytest.mark.parametrize("case", FUSED)
def test_ways_to_write_a_pattern(case):
    model = Odd(FUSED[case]).to(DEVICE, torch.float64)
    twin, x = copy.deepcopy(model), make_input((3, C, 4, 3))
    report = fastnorm.fuse(model, x)
    assert [c.name for c in report.changed] == ["norm"] and not report.kept
    assert report.changed[0].new.endswith("with residual")
    assert_same_results(report.model, twin, x)


def test_torchs_norms_and_hooks_in_a_trace():
    theirs = Odd(lambda m, x: TF.relu(m.norm(x)), nn.BatchNorm2d(C)).to(DEVICE, torch.float64)
    assert "convert first" in fastnorm.fuse(theirs, make_input((3, C, 4, 3))).kept[0].reason
    hooked = Odd(lambda m, x: TF.relu(m.norm(x))).to(DEVICE, torch.float64)
    hooked.norm.register_forward_hook(lambda *_: None)
    assert "hooks" in fastnorm.fuse(hooked, make_input((3, C, 4, 3))).kept[0].reason


def test_a_transformer_layer_is_called_whole():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
    model = nn.Sequential(layer, nn.LayerNorm(8), nn.GELU()).to(DEVICE, torch.float64).eval()
    x = make_input((2, 5, 8))
    expected = model(x)
    fastnorm.convert(model)
    report = fastnorm.fuse(model, x)
    assert [c.name for c in report.changed] == ["1"]
    assert [n.target for n in report.model.graph.nodes if n.op == "call_module"] == ["0", "1"]
    assert_close(report.model(x), expected)


class Optional(nn.Sequential):
    def forward(self, x, mask=None):
        return super().forward(x)


def decide(m, x):
    return x if isinstance(x, torch.Tensor) else 3 * m.norm(x)


def add_to_an_alias(m, x):
    """torch.fx records r + y for r += y."""
    r = alias = x * 1
    r += m.norm(x)
    return r + alias


REFUSED = {
    "optional arguments": (Optional(fastnorm.BatchNorm2d(C)), r"optional arguments \(mask\)"),
    "training": (Odd(lambda m, x: TF.dropout(m.norm(x), training=m.training)), "self.training"),
    "constant": (Odd(lambda m, x: m.norm(x) + torch.randn(1)), "makes tensors"),
    "control flow": (Odd(lambda m, x: m.norm(x) if x.sum() > 0 else x), "cannot trace"),
    "unused": (Odd(lambda m, x: x), r"does not use: \['norm.bias'"),
    "addition in place": (Odd(add_to_an_alias), "answers otherwise"),
    "hidden decision": (Odd(decide), "answers otherwise"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_cannot_be_traced_stays_untouched(case):
    model, words = REFUSED[case]
    model = copy.deepcopy(model).to(DEVICE).eval()
    model.train()
    next(model.children()).eval()  # mixed flags, to be left as they are
    before = fingerprint(model)
    with pytest.raises(ValueError, match=words):
        fastnorm.fuse(model, make_input((3, C, 4, 3), dtype=torch.float32))
    assert fingerprint(model) == before


def test_hooks_of_the_model_itself_cannot_be_traced():
    model = Odd(lambda m, x: TF.relu(m.norm(x)))
    model.register_forward_pre_hook(lambda *_: None)
    with pytest.raises(ValueError, match="hooks itself"):
        fastnorm.fuse(model, make_input((3, C, 4, 3), dtype=torch.float32))


def test_the_example_leaves_no_trace():
    model = Odd(lambda m, x: TF.dropout(TF.relu(m.norm(x.add_(1))), 0.5, True)).to(DEVICE)
    x, state = make_input((3, C, 4, 3), dtype=torch.float32), torch.get_rng_state()
    before, kept = x.clone(), copy.deepcopy(model.state_dict())
    traced = fastnorm.fuse(model, (x,)).model
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(x, before)
    assert all(torch.equal(traced.state_dict()[key], value) for key, value in kept.items())


def test_revert_of_a_traced_model_points_to_the_original():
    net = small_net()
    fastnorm.convert(net)
    traced = fastnorm.fuse(net, images()).model
    with pytest.raises(ValueError, match="no activation='relu'"):
        fastnorm.revert(traced)
    fastnorm.revert(net)
    assert_same_results(net, small_net(), images())


CALLED = {
    "relu": lambda z: TF.relu(z, inplace=True),
    "gelu": lambda z: TF.gelu(z, approximate="none"),
    "gelu_tanh": lambda z: TF.gelu(z, approximate="tanh"),
    "hardswish": TF.hardswish,
    "mish": lambda z: TF.mish(z, inplace=False),
    "leaky_relu(0.01)": TF.leaky_relu,
    "leaky_relu(0.2)": lambda z: TF.leaky_relu(z, 0.2, inplace=True),
    "elu(1.0)": TF.elu,
    "elu(1.5)": lambda z: TF.elu(z, alpha=1.5),
}


@pytest.mark.parametrize("activation", CALLED)
def test_activations_that_are_called(activation):
    """With their parameters, after a norm and after a sum."""
    call = CALLED[activation]
    forwards = {
        "": lambda m, x: call(m.norm(x)),
        " with residual": lambda m, x: call(m.norm(x) + x),
    }
    for after, forward in forwards.items():
        model = Odd(forward).to(DEVICE, torch.float64)
        twin, x = copy.deepcopy(model), make_input((3, C, 4, 3))
        report = fastnorm.fuse(model, x)
        assert [change.new for change in report.changed] == [
            f"fastnorm.BatchNorm2d(activation={activation!r}){after}"
        ]
        torch.testing.assert_close(report.model(x), twin(x))


class Later(nn.Module):
    """act(norm(conv(x)) + r) + later(r)."""

    def __init__(self, activation, later):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(C, C, 1, bias=False), fastnorm.BatchNorm2d(C)
        self.activation, self.later = activation, later

    def forward(self, x):
        r = x * 1
        y = self.activation(self.norm(self.conv(x)) + r)
        return y + self.later(r)


def plus_one(r):
    return r + 1


def plus_one_in_place(r):
    return r.add_(1)


def plus_one_in_a_view(r):
    return r.flatten(1).add_(1).view(-1, C, 3, 3)


@pytest.mark.parametrize("later", [plus_one, plus_one_in_place, plus_one_in_a_view])
@pytest.mark.parametrize("activation", [TF.relu, TF.silu])
def test_a_residual_that_changes_in_place_later(activation, later):
    """A smooth activation keeps the residual for its backward, and then nothing may write to it."""
    net = Later(activation, later).to(DEVICE, torch.float64)
    x = make_input((2, C, 3, 3), dtype=torch.float64)
    report = fastnorm.fuse(net, x)
    kept = activation is TF.silu and later is not plus_one
    assert [k.reason for k in report.kept] == ["the tensor added to it may change in place later"][
        : int(kept)
    ]
    twin = copy.deepcopy(net)
    report.model(x).square().sum().backward()
    twin(x).square().sum().backward()
    for mine, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        assert_close(mine.grad, theirs.grad)


def test_a_module_with_two_names():
    """It keeps both in the traced model; torch.fx knows only the first."""
    block = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), nn.ReLU())
    net = nn.Sequential(block, block, nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), nn.ReLU()).to(DEVICE)
    fastnorm.convert(net)
    x = make_input((2, C, 3, 3), dtype=torch.float32)
    report = fastnorm.fuse(net, x)
    assert [c.name for c in report.changed] == ["3"]
    assert [(k.name, k.reason) for k in report.kept] == [("0.1", "it is called more than once")]
    assert report.model.state_dict().keys() == net.state_dict().keys()
    assert report.model.get_submodule("1.0") is report.model.get_submodule("0.0")
    assert_close(report.model.eval()(x), net.eval()(x).double())
