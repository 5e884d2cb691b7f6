"""Small networks with norms in every kind of place, and how two of them are compared."""

import torch
from torch import nn

from tests.conftest import DEVICE, assert_close, make_input

C = 4


class Residual(nn.Module):
    """The block of a ResNet: one ReLU for two places, an addition in place, a shortcut."""

    def __init__(self, channels, out, inplace=True):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, padding=1), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace)
        self.shortcut = nn.Sequential()
        if channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1), nn.BatchNorm2d(out))

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.shortcut(x)
        return self.relu(y)


class PreActivation(nn.Module):
    """Norm and activation before the convolution, as functions and as a method."""

    def __init__(self, channels):
        super().__init__()
        self.n1, self.n2 = nn.GroupNorm(2, channels), nn.BatchNorm2d(channels)
        self.c1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.c2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        y = self.c1(nn.functional.silu(self.n1(x)))
        return self.c2(self.n2(y).relu()) + x


def small_net():
    """Every kind of place a norm can have, with parameters and statistics of no constructor."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C, eps=1e-3), nn.ReLU(inplace=True)),
        Residual(C, C),
        Residual(C, 2 * C),
        PreActivation(2 * C),
        nn.InstanceNorm2d(2 * C, affine=True),
        nn.GELU(),
        nn.Flatten(2),
        nn.LayerNorm(16),
        nn.SiLU(),
        nn.Flatten(1),
        nn.Linear(2 * C * 16, C),
        nn.BatchNorm1d(C, momentum=None),
        nn.ReLU(),
    ).to(DEVICE, torch.float64)
    for i, tensor in enumerate(net.state_dict().values()):
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.copy_(make_input(tensor.shape, seed=i).abs().clamp(max=2) / 4 + 0.5)
    return net


def images(seed=0):
    return make_input((5, 3, 6, 6), seed=seed, requires_grad=True)


def results(model, x):
    """The output, all gradients and buffers of one step; the input's gradient is "x"."""
    x = x.detach().clone().requires_grad_()
    model.zero_grad()
    y = model(x)
    (y**3).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return {"y": y, "x": x.grad, **grads, **dict(model.named_buffers())}


def assert_same_results(model, twin, x):
    found, expected = results(model, x), results(twin, x)
    assert set(found) == set(expected)
    for name, exact in expected.items():
        scale = exact.detach().abs().max().item() if exact.numel() else 0.0
        assert_close(found[name], exact, name, slack=1e-11 * max(scale, 1.0))


def tensors_of(model):
    """The very tensors by name."""
    return {k: id(v) for k, v in [*model.named_parameters(), *model.named_buffers()]}


def fingerprint(model):
    """What must not change where a call raises."""
    kinds = [(n, type(m), m.training, sorted(vars(m))) for n, m in model.named_modules()]
    return kinds, repr(model), tensors_of(model)
