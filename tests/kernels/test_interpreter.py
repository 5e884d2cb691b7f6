"""tests/interpreter.py changes only the time of a launch."""

import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

import fastnorm.functional as F
from fastnorm.kernels import tiers
from tests.conftest import DEVICE, make_input, running
from tests.interpreter import AS_IT_COMES
from tests.norms import forward_backward, make_params

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="a GPU needs no interpreter")
SHAPE = (2, 4, 3, 2)


def results(norm):
    x = make_input(SHAPE, dtype=torch.float32, requires_grad=True)
    p = make_params(norm, SHAPE, torch.float32, requires_grad=True)
    dy = make_input(SHAPE, dtype=torch.float32, seed=8)
    with running("triton"):
        return forward_backward(F, norm, x, p, dy, activation="silu")


@pytest.mark.parametrize("tier", ["one_program", "streaming"])
def test_results_are_the_same_bits(monkeypatch, tier):
    """Of channels, of rows and of groups; of the other norms every test says so, by the truth."""
    with tiers.force(tier):
        for norm in ("bin_train", "rms", "gn"):
            found = results(norm)
            with monkeypatch.context() as patch:
                patch.setattr(interpreter, "_patch_lang", AS_IT_COMES)
                expected = results(norm)
            for name, exact in expected.items():
                assert torch.equal(found[name], exact), f"{norm}: {name}"


def test_the_language_is_replaced_once_a_launch_and_restored(monkeypatch):
    """Of a forward and a backward, once Triton's own functions have been called."""
    replaced = []

    def as_it_comes(fn):
        replaced.append(fn.__name__)
        return AS_IT_COMES(fn)

    results("gn")
    monkeypatch.setattr("tests.interpreter.AS_IT_COMES", as_it_comes)
    results("gn")
    assert replaced == ["resident_kernel", "resident_backward_kernel"]
    assert tl.core.is_builtin(tl.load)
