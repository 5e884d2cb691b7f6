"""no_decay_parameters: the parameters without weight decay."""

import pytest
import torch
from torch import nn

import fastnorm
from tests.modules.own_norms import FilterResponseNorm


def model():
    return nn.Sequential(
        fastnorm.weight_norm(nn.Conv2d(3, 4, 1)),
        fastnorm.MeanOnlyBatchNorm2d(4),
        fastnorm.SwitchableNorm2d(4),
        fastnorm.BatchInstanceNorm2d(4),
        nn.Sequential(nn.BatchNorm2d(4), FilterResponseNorm(4)),
        fastnorm.LayerNorm((4, 2, 2)),
        nn.Conv2d(4, 4, 1, bias=False),
        nn.Flatten(),
        nn.LSTM(16, 2),
    )


NONE = {
    "0.bias", "1.bias", "2.mean_weight", "2.var_weight", "2.weight", "2.bias", "3.weight",
    "3.bias", "3.rho", "4.0.weight", "4.0.bias", "4.1.weight", "4.1.bias", "5.weight", "5.bias",
    "8.bias_ih_l0", "8.bias_hh_l0",
}  # fmt: skip
DECAYED = {
    "0.parametrizations.weight.original0", "0.parametrizations.weight.original1", "6.weight",
    "8.weight_ih_l0", "8.weight_hh_l0",
}  # fmt: skip


def test_every_parameter_is_one_or_the_other():
    net = model()
    assert fastnorm.no_decay_parameters(net) == NONE
    assert {name for name, _ in net.named_parameters()} == NONE | DECAYED
    assert fastnorm.no_decay_parameters(fastnorm.GroupNorm(2, 4)) == {"weight", "bias"}


def test_shared_and_parametrized_norms():
    """Each under the name that named_parameters gives it."""
    norm = fastnorm.LayerNorm(4)
    net = nn.ModuleDict({"a": norm, "b": norm, "c": nn.RMSNorm(4)})
    nn.utils.parametrizations.weight_norm(net["c"], "weight", dim=None)
    names = fastnorm.no_decay_parameters(net)
    assert names == {name for name, _ in net.named_parameters()}


def test_groups_for_an_optimizer():
    """The lines of docs/migrating.md: the decayed move without a gradient, the others do not."""
    net = model()
    names = fastnorm.no_decay_parameters(net)
    named = dict(net.named_parameters())
    groups = [
        {"params": [p for n, p in named.items() if n not in names], "weight_decay": 0.5},
        {"params": [p for n, p in named.items() if n in names], "weight_decay": 0.0},
    ]
    before = {n: p.detach().clone() for n, p in named.items()}
    for p in named.values():
        p.grad = torch.zeros_like(p)
    torch.optim.AdamW(groups, lr=0.1).step()
    assert {n for n, p in named.items() if not torch.equal(p, before[n])} == DECAYED


def test_refusal():
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        fastnorm.no_decay_parameters(model().parameters())
