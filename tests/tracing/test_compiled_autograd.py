"""Compiled autograd behind an eager forward: the backward of each norm in one traced program."""

import pytest
import torch
from torch import nn
from torch._dynamo import compiled_autograd

import fastnorm
from tests.conftest import BACKENDS, DEVICE, make_input, running, slow_unless
from tests.tracing.nets import difference, loss

C, SHAPE = 4, (3, 4, 6, 5)


class Net(nn.Module):
    """Every way that a backward can take."""

    def __init__(self):
        super().__init__()
        self.norms = nn.Sequential(
            fastnorm.BatchNorm2d(C, activation="relu"),
            fastnorm.InstanceNorm2d(C, affine=True, activation="silu"),
            fastnorm.BatchInstanceNorm2d(C),
            fastnorm.MeanOnlyBatchNorm2d(C),
            fastnorm.SwitchableNorm2d(C, activation="relu"),
            fastnorm.weight_norm(nn.Linear(5, 5)),
            fastnorm.RMSNorm(5),
        )
        self.gn, self.add = fastnorm.GroupNorm(2, C, activation="gelu"), fastnorm.AddLayerNorm(5)

    def forward(self, x):
        y = self.norms(x)
        y, total = self.add(self.gn(y, residual=x), y)
        return y + total


@pytest.mark.parametrize(
    "backend", [pytest.param(b, marks=slow_unless(b == "triton")) for b in BACKENDS]
)
def test_gradients_are_eagers(backend):
    model, x = Net().to(DEVICE), make_input(SHAPE, dtype=torch.float32, requires_grad=True)
    targets = [x, *model.parameters()]
    found = []
    with running(backend):
        for compiled in (False, True):
            y = loss(model(x))
            if compiled:
                run = torch.compile(backend="eager", fullgraph=True)
                with compiled_autograd._enable(run):
                    y.backward()
            else:
                y.backward()
            found.append([t.grad.clone() for t in targets])
            for t in targets:
                t.grad = None
    scale = max(t.abs().max().item() for t in found[0])
    assert difference(*found) <= 1e-5 * max(scale, 1.0)  # the formula serves some, in float32
