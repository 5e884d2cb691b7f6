"""fastnorm.weight_norm and torch's parametrisation, and the data-dependent initialisation."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import weight_norm as older_weight_norm

import fastnorm
from tests.conftest import BACKENDS, DEVICE, assert_close, make_input, running

LAYERS = {
    "conv": (lambda: nn.Conv2d(3, 6, 3, device=DEVICE, dtype=torch.float64), 0, (2, 3, 5, 5)),
    "transposed": (
        lambda: nn.ConvTranspose1d(3, 6, 3, device=DEVICE, dtype=torch.float64), 1, (2, 3, 5),
    ),
    "linear": (lambda: nn.Linear(4, 6, device=DEVICE, dtype=torch.float64), 0, (2, 7, 4)),
    "whole": (lambda: nn.Linear(4, 6, device=DEVICE, dtype=torch.float64), None, (7, 4)),
}  # fmt: skip
each_layer = pytest.mark.parametrize("name", LAYERS)


def pair(name):
    """Our weight-normalised layer, torch's with the same weights, and an input."""
    torch.manual_seed(0)
    layer, dim, shape = LAYERS[name][0](), *LAYERS[name][1:]
    ours, theirs = copy.deepcopy(layer), copy.deepcopy(layer)
    assert fastnorm.weight_norm(ours, dim=dim) is ours
    parametrizations.weight_norm(theirs, dim=dim)
    return ours, theirs, make_input(shape)


@each_layer
def test_state_loads_both_ways(name):
    ours, theirs, _ = pair(name)
    state, expected = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in state)
    assert repr(ours) == repr(theirs)
    with torch.no_grad():
        for p in ours.parameters():
            p.mul_(1.5)
    theirs.load_state_dict(ours.state_dict())
    assert_close(ours.weight, theirs.weight)
    ours.load_state_dict(expected)
    theirs.load_state_dict(expected)
    assert_close(ours.weight, theirs.weight)


def test_loads_checkpoints_of_torchs_older_weight_norm():
    ours, _, _ = pair("conv")
    with pytest.warns(FutureWarning):
        older = older_weight_norm(nn.Conv2d(3, 6, 3, device=DEVICE, dtype=torch.float64))
    ours.load_state_dict(older.state_dict())
    assert_close(ours.weight, older.weight)


@each_layer
@pytest.mark.parametrize("backend", BACKENDS)
def test_training_in_step(backend, name):
    ours, theirs, x = pair(name)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (ours, theirs)]
    with running(backend):
        for _ in range(3):
            for module, optimizer in zip((ours, theirs), optimizers, strict=True):
                optimizer.zero_grad()
                (module(x) ** 2).mean().backward()
                optimizer.step()
    for key, value in theirs.state_dict().items():
        assert_close(ours.state_dict()[key], value, key)


def test_another_parameter_by_name():
    """A parameter that is not called weight, beside one that is normalised already."""
    torch.manual_seed(0)
    lstm = nn.LSTM(3, 4, device=DEVICE, dtype=torch.float64)
    twin = copy.deepcopy(lstm)
    for name in ("weight_hh_l0", "weight_ih_l0"):
        fastnorm.weight_norm(lstm, name)
        parametrizations.weight_norm(twin, name)
    x = make_input((2, 1, 3))
    with running("triton"):
        ours = lstm(x)[0]
    assert_close(ours, twin(x)[0])


def test_undone_copied_and_pickled_as_torchs():
    ours, theirs, x = pair("conv")
    plain = pair("conv")[0]
    parametrize.remove_parametrizations(plain, "weight")
    assert type(plain) is nn.Conv2d and isinstance(plain.weight, nn.Parameter)
    with fastnorm.use_backend("cpu"):
        assert_close(plain(x), ours(x))
        twin = copy.deepcopy(ours)
        twin.parametrizations.weight.original0.data.mul_(2.0)
        assert_close(twin.weight, 2.0 * ours.weight)
    for module in (ours, theirs):
        with pytest.raises(RuntimeError, match="state_dict"):
            pickle.dumps(module)


def test_errors_are_torchs():
    for register in (fastnorm.weight_norm, parametrizations.weight_norm):
        with pytest.raises(ValueError, match="kernel"):
            register(nn.Linear(2, 3), "kernel")
        with pytest.raises((IndexError, RuntimeError)):
            register(nn.Linear(2, 3), dim=5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_in_one_graph(backend):
    torch._dynamo.reset()
    ours, theirs, x = pair("conv")
    model = nn.Sequential(ours, fastnorm.MeanOnlyBatchNorm2d(6, device=DEVICE, dtype=x.dtype))
    run = torch.compile(model, backend="aot_eager", fullgraph=True)
    with fastnorm.use_backend(backend):
        (run(x) ** 3).mean().backward()
    y = theirs(x)
    ((y - y.mean((0, 2, 3), keepdim=True)) ** 3).mean().backward()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        slack = 1e-14 if p is ours.bias else 0.0  # the mean takes it away: rounding is left
        assert_close(p.grad, q.grad, slack=slack)
    torch._dynamo.reset()


class Branches(nn.Module):
    """A layer that runs twice, one without bias, one transposed, one after a flattened batch."""

    def __init__(self, register):
        super().__init__()
        self.twice = register(nn.Conv2d(3, 3, 3, padding=1))
        self.bare = register(nn.Conv2d(3, 5, 3, groups=1, bias=False))
        self.up = register(nn.ConvTranspose2d(5, 4, 2), dim=1)
        self.linear = register(nn.Linear(4, 6))
        self.plain = nn.Linear(6, 2)

    def forward(self, x):
        x = self.twice(torch.relu(self.twice(x)))
        x = self.up(torch.relu(self.bare(x)))
        return self.plain(torch.relu(self.linear(torch.relu(x).movedim(1, -1))))


def outputs_of(model, x):
    """The first output of each layer, channels last."""
    found = {}

    def keep(name, y):
        found.setdefault(name, y if name in ("linear", "plain") else y.movedim(1, -1))

    hooks = [
        layer.register_forward_hook(lambda _m, _i, y, name=name: keep(name, y))
        for name, layer in model.named_children()
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return {name: y.flatten(0, -2) for name, y in found.items()}


@pytest.mark.parametrize("register", [fastnorm.weight_norm, parametrizations.weight_norm])
@pytest.mark.parametrize("backend", BACKENDS)
def test_initialised_outputs_have_mean_0_and_variance_1(backend, register):
    torch.manual_seed(0)
    model = Branches(register).to(DEVICE, torch.float64)
    x = make_input((4, 3, 7, 6), mean=3.0, std=2.0)
    before = copy.deepcopy(model.plain.state_dict())
    with running(backend, launches=register is fastnorm.weight_norm):
        fastnorm.initialise_weight_norm(model, x)
        found = outputs_of(model, x)
    for name in ("twice", "bare", "up", "linear"):
        var, mean = torch.var_mean(found[name], 0, correction=0)
        assert_close(var, torch.ones_like(var), f"variance of {name}")
        if name != "bare":
            assert_close(mean, torch.zeros_like(mean), f"mean of {name}", slack=1e-13)
    assert all(torch.equal(v, before[k]) for k, v in model.plain.state_dict().items())
    assert not any(layer._forward_hooks for layer in model.children())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_initialised_without_a_batch_dimension_and_with_constant_channels():
    torch.manual_seed(0)
    layer = fastnorm.weight_norm(nn.Conv1d(2, 3, 2).to(DEVICE, torch.float64))
    with torch.no_grad():
        layer.parametrizations.weight.original0[1] = 0.0
    x = make_input((2, 9))
    with fastnorm.use_backend("cpu"):
        fastnorm.initialise_weight_norm(layer, x)
        var, mean = torch.var_mean(layer(x), 1, correction=0)
    assert_close(var, torch.tensor([1.0, 0.0, 1.0], dtype=x.dtype, device=DEVICE))
    assert_close(mean, torch.zeros_like(mean), slack=1e-13)


def test_initialisation_refuses():
    with pytest.raises(TypeError, match=r"initialise_weight_norm got .*torch\.nn\.Module"):
        fastnorm.initialise_weight_norm(nn.Conv2d, torch.zeros(1))
    x = make_input((2, 4), dtype=torch.float32)
    with pytest.raises(ValueError, match="Linear has no weight-normalised"):
        fastnorm.initialise_weight_norm(nn.Linear(4, 4).to(DEVICE), x)
    for dim in (1, None):
        layer = fastnorm.weight_norm(nn.Linear(4, 4).to(DEVICE), dim=dim)
        with fastnorm.use_backend("cpu"), pytest.raises(ValueError, match="dim=0"):
            fastnorm.initialise_weight_norm(layer, x)
        assert not layer._forward_hooks
