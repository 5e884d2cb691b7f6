"""fuse in place: activations go into norms, batch norms into convolutions, results stay."""

import copy

import pytest
import torch
from torch import nn

import fastnorm
from tests.conftest import BACKENDS, DEVICE, assert_close, make_input, running
from tests.conversion.models import C, assert_same_results, fingerprint, images, small_net

# --- fuse, in place ---


@pytest.mark.parametrize("backend", BACKENDS)
def test_fuse_and_revert_a_sequential(backend):
    """Results and keys as before; each revert undoes what was fused, the activations included."""
    twin, net = small_net(), small_net()
    activations = [net[0][2], net[5], net[8], net[12]]
    fastnorm.convert(net)
    report = fastnorm.fuse(net)
    assert [name for name, *_ in report.changed] == ["4", "7", "11", "0.1"]
    assert report.changed[0].new == "fastnorm.InstanceNorm2d(activation='gelu')"
    assert isinstance(net[0][2], fastnorm.FusedActivation) and net[0][1].activation == "relu"
    assert "ReLU, in the norm before" in repr(net[0][2])
    assert list(net.state_dict()) == list(twin.state_dict())
    with running(backend):
        assert_same_results(net, twin, images())
    assert not fastnorm.fuse(net).changed
    fastnorm.revert(copy.deepcopy(net)), fastnorm.revert(net)
    assert [net[0][2], net[5], net[8], net[12]] == activations
    assert repr(net) == repr(twin)
    assert_same_results(net, twin, images(1))


def test_what_fuse_leaves_alone():
    """Patterns that are not plain, with the reason for those that nearly are."""
    hooked, shared, overridden = (fastnorm.BatchNorm2d(C) for _ in range(3))
    hooked.register_forward_hook(lambda *_: None)
    overridden.forward = overridden.forward
    listened = nn.ReLU()
    listened.register_full_backward_hook(lambda *_: None)
    model = nn.Sequential(
        nn.Sequential(hooked, nn.ReLU()),
        nn.Sequential(shared, nn.ReLU(), shared),
        nn.Sequential(nn.BatchNorm2d(C), nn.ReLU()),
        nn.Sequential(fastnorm.BatchNorm2d(C), listened),
        nn.Sequential(fastnorm.BatchNorm2d(C), nn.SELU()),
        nn.Sequential(fastnorm.BatchNorm2d(C), nn.RReLU()),
        nn.Sequential(fastnorm.BatchNorm2d(C, activation="relu"), nn.SiLU()),
        nn.Sequential(overridden, nn.ReLU()),
        nn.ModuleList([fastnorm.BatchNorm2d(C), nn.ReLU()]),
    )
    before = fingerprint(model)
    report = fastnorm.fuse(model)
    assert not report.changed and fingerprint(model) == before
    words = {"0.0": "hooks", "1.0": "more than once", "2.0": "convert", "3.0": "hooks"}
    words["8.0"] = "example"
    assert {kept.name for kept in report.kept} == set(words)
    assert all(words[kept.name] in kept.reason for kept in report.kept)


FUSED = {
    "relu": nn.ReLU(), "silu": nn.SiLU(), "gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh"),
    "hardswish": nn.Hardswish(), "mish": nn.Mish(), "leaky_relu(0.2)": nn.LeakyReLU(0.2),
    "elu(1.5)": nn.ELU(1.5),
}  # fmt: skip


@pytest.mark.parametrize("activation", FUSED)
def test_every_activation(activation):
    """Fused, folded and back again, each with its parameter."""
    model = nn.Sequential(nn.Conv2d(3, C, 1), fastnorm.BatchNorm2d(C), FUSED[activation])
    model.to(DEVICE, torch.float64)
    x, plain = images(1), copy.deepcopy(model)
    expected = plain(x)
    fastnorm.fuse(model)
    assert model[1].activation == activation and isinstance(model[2], fastnorm.FusedActivation)
    torch.testing.assert_close(model(x), expected)
    folded = fastnorm.fuse(copy.deepcopy(model).eval(), fold=True).model
    torch.testing.assert_close(folded(x), model.eval()(x))
    fastnorm.revert(model)
    assert repr(model[2]) == repr(FUSED[activation])


class Residual(nn.Module):
    """As a ResNet's block: its forward calls norms, activation and addition."""

    def __init__(self, norm):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(C, C, 1), norm(C), nn.ReLU()
        self.shortcut = nn.Sequential(nn.Conv2d(C, C, 1), norm(C))
        self.inner = nn.Sequential(norm(C), nn.Tanh())

    def forward(self, x):
        return self.act(self.norm(self.conv(x)) + self.shortcut(self.inner(x)))


def test_norms_that_a_forward_calls_are_listed_with_the_remedy():
    """Without an example nothing is known of what follows them; with one all are fused."""
    model = nn.Sequential(Residual(fastnorm.BatchNorm2d), fastnorm.BatchNorm2d(C))
    report = fastnorm.fuse(model)
    assert not report.changed
    assert [kept.name for kept in report.kept] == ["0.norm", "0.shortcut.1"]
    assert all("fuse(model, example)" in kept.reason for kept in report.kept)
    assert "2 kept" in str(report)
    assert len(fastnorm.fuse(model, torch.randn(2, C, 3, 3)).changed) == 1
    torchs = fastnorm.fuse(Residual(nn.BatchNorm2d)).kept
    assert [kept.name for kept in torchs] == ["norm", "shortcut.1"]
    assert all("convert" in kept.reason and "example" in kept.reason for kept in torchs)


@pytest.mark.parametrize(
    "function",
    [fastnorm.convert, fastnorm.convert_sync_batchnorm, fastnorm.fuse, fastnorm.revert],
)
@pytest.mark.parametrize("model", ["resnet18", None, 3, nn.BatchNorm2d, [nn.ReLU()]], ids=str)
def test_what_is_no_module_is_refused(function, model):
    with pytest.raises(TypeError, match=rf"{function.__name__} got .*torch\.nn\.Module"):
        function(model)


# --- folding ---


@pytest.mark.parametrize("package", [nn, fastnorm])
@pytest.mark.parametrize("conv", [
    nn.Conv1d(3, C, 2, bias=False), nn.Conv2d(3, C, 2, padding=1, padding_mode="reflect"),
    nn.Conv3d(3, C, 2, groups=1), nn.ConvTranspose2d(3, C, 2, stride=2),
    nn.Conv2d(4, C, 2, groups=2),
], ids=lambda c: type(c).__name__)  # fmt: skip
def test_folded_batch_norms(conv, package):
    d = int(type(conv).__name__[-2])
    norm = getattr(package, f"BatchNorm{d}d")(C)
    model = nn.Sequential(copy.deepcopy(conv), norm, nn.ReLU()).to(DEVICE, torch.float64)
    for i, tensor in enumerate(norm.state_dict().values()):
        tensor.copy_(make_input(tensor.shape, seed=i).abs() + 0.5)
    x = make_input((2, conv.in_channels, *[4] * d))
    expected = model.eval()(x)
    report = fastnorm.fuse(model, fold=True)
    assert [(c.name, c.new) for c in report.changed] == [("1", "in 0")]
    assert type(model[1]) is nn.Identity and type(model[0]) is type(conv)
    assert_close(model(x), expected, slack=1e-13)


def test_a_folded_batch_norm_leaves_its_activation():
    model = nn.Sequential(nn.Conv2d(3, C, 1), fastnorm.BatchNorm2d(C, activation="relu")).eval()
    x = make_input((2, 3, 4, 4), dtype=torch.float32)
    model.to(DEVICE)
    expected = model(x)
    assert expected.min() == 0
    fastnorm.fuse(model, fold=True)
    assert type(model[1]) is nn.ReLU
    assert_close(model(x), expected, slack=1e-6)


def test_what_is_not_folded():
    shared, hooked = nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 1)
    hooked.register_forward_hook(lambda *_: None)
    pairs = [
        (shared, nn.BatchNorm2d(C), "more than once"),
        (hooked, nn.BatchNorm2d(C), "hooks"),
        (nn.Conv2d(C, C, 1), nn.BatchNorm2d(C, track_running_stats=False), "no running statistics"),
        (nn.Linear(C, C), nn.BatchNorm1d(C), "pass an example"),
        (nn.ConvTranspose2d(C, C, 1, groups=2), nn.BatchNorm2d(C), "in groups"),
        (nn.Conv2d(C, 2, 1), nn.BatchNorm2d(C), "another number of channels"),
    ]
    model = nn.Sequential(*[nn.Sequential(conv, norm) for conv, norm, _ in pairs], shared)
    before = fingerprint(model.eval())
    report = fastnorm.fuse(model, fold=True)
    assert not report.changed and fingerprint(model) == before
    for kept, (_, _, words) in zip(report.kept, pairs, strict=True):
        assert words in kept.reason
    model[1].train()
    with pytest.raises(ValueError, match="1 in training mode"):
        fastnorm.fuse(model, fold=True)


def test_a_linear_layer_is_folded_where_the_example_shows_its_rank():
    """After a linear layer batch norm's channels are dimension 1, which is the last one or not."""
    model = nn.Sequential(nn.Linear(3, C), fastnorm.BatchNorm1d(C, activation="relu"))
    model.eval().to(DEVICE, torch.float64)
    for i, tensor in enumerate(model[1].state_dict().values()):
        tensor.copy_(make_input(tensor.shape, seed=i).abs() + 0.5)
    flat, long = make_input((5, 3)), make_input((5, C, 3))
    expected = model(flat)
    report = fastnorm.fuse(model, flat, fold=True)
    assert report.changed[0].new == "in 0" and type(report.model.get_submodule("1")) is nn.ReLU
    assert_close(report.model(flat), expected)
    kept = fastnorm.fuse(model, long, fold=True).kept
    assert [k.name for k in kept] == ["1"] and "not those of the linear" in kept[0].reason
    assert_close(model(flat), expected)
