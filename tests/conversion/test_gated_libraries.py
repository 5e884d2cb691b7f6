"""convert of transformers' gated RMS norms."""

import pytest
import torch

import fastnorm
from tests.conftest import BACKENDS, DEVICE, assert_close, make_input, running
from tests.conversion import library_classes as libraries

D = 8
SHAPE = (3, 5, D)
# The library's module, what ours says, and whether it may be called without a gate.
TAKEN = {
    "mamba": (libraries.Mamba, {"group_size": 4, "norm_before_gate": False}, True),
    "falcon": (libraries.Falcon, {"group_size": 4, "norm_before_gate": False}, True),
    "falcon_after": (
        lambda: libraries.Falcon(norm_before_gate=True),
        {"group_size": 4, "norm_before_gate": True}, True,
    ),
    "qwen": (libraries.QwenGated, {"group_size": None, "norm_before_gate": True}, False),
}  # fmt: skip


def made(name):
    module = TAKEN[name][0]().to(DEVICE)
    module.weight.data = make_input((D,), dtype=torch.float32, mean=1.0, std=0.3)
    return module


def results(module, gated):
    inputs = [
        make_input(SHAPE, dtype=torch.float32, seed=i, requires_grad=True)
        for i in range(2 if gated else 1)
    ]
    y = module(*inputs)
    dy = make_input(SHAPE, dtype=torch.float32, seed=7)
    return [y, *torch.autograd.grad(y, [*inputs, module.weight], dy)]


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gated_norm_becomes_ours_and_goes_back(backend, name):
    _, settings, without = TAKEN[name]
    twin, norm = made(name), made(name)
    library, had = type(norm), vars(norm).copy()
    report = fastnorm.convert(norm)
    assert type(norm) is fastnorm.GatedRMSNorm and not report.kept, report
    assert {key: getattr(norm, key) for key in settings} == settings
    assert list(norm.state_dict()) == ["weight"]
    for gated in (True, False) if without else (True,):
        with running(backend):
            found = results(norm, gated)
        for mine, exact in zip(found, results(twin, gated), strict=True):
            assert_close(mine, exact, slack=2e-6)
    fastnorm.revert(norm)
    assert type(norm) is library and vars(norm).keys() == had.keys()


class DoubledWithoutGate(libraries.Mamba):
    def forward(self, hidden_states, gate=None):
        return super().forward(hidden_states, gate) * (2 if gate is None else 1)


class OtherNames(libraries.Mamba):
    def forward(self, hidden_states, residual=None):
        return super().forward(hidden_states, residual)


@pytest.mark.parametrize(("norm", "words"), [
    (DoubledWithoutGate, "computes something else"),
    (OtherNames, "takes other arguments: hidden_states, residual=None"),
    (lambda: libraries.QwenGated(activation="sigmoid"), "computes something else"),
])  # fmt: skip
def test_what_computes_something_else_is_kept(norm, words):
    library = libraries.Mamba
    if isinstance(norm, type):
        libraries.named(f"{library.__module__}.{library.__qualname__}")(norm)
    report = fastnorm.convert(norm())
    assert not report.changed and words in report.kept[0].reason
