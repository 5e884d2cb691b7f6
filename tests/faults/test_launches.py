"""Calls that raise: nothing is left half done, and the next call is right."""

import pytest
import torch
import torch.nn.functional as TF

import fastnorm
from fastnorm.kernels import launch, tiers
from tests.conftest import BACKENDS, DEVICE, assert_close, make_input, running, slow_unless
from tests.faults.modules import (
    SHAPE,
    WRITERS,
    C,
    LaunchError,
    assert_unchanged,
    make,
    snapshot,
    train,
)

TIERS = ("one_program", "streaming")  # those that the interpreter has


def tickets_left():
    """Whether a counter of programs is not back at 0 (a barrier's need not be)."""
    return any(counter.any() for key, counter in launch._counters.items() if key[0] == "tickets")


def train_by_reference(name, x, dy):
    module = make(name, affine=True, activation="relu")
    with running("reference"):
        return {"results": train(module, x, dy), "state": module.state_dict()}


def test_a_failed_launch_has_changed_nothing(fail_at, monkeypatch):
    """The first, and after it the second, in the forward of every norm and tier; the next call is
    right and counts as the first."""
    x, dy = make_input(SHAPE), make_input(SHAPE, seed=8)
    for name in WRITERS:
        for tier in TIERS:
            module = make(name, affine=True, activation="relu")
            exact = train_by_reference(name, x, dy)
            before = snapshot(module)
            with running("triton", launches=False), tiers.force(tier):
                for nth in (1,) if tier == "one_program" else (1, 2):
                    fail_at(nth)
                    with pytest.raises(LaunchError):
                        module(x)
                    monkeypatch.undo()
                    assert_unchanged(module, before)
                    assert not tickets_left()
                found = train(module, x, dy)
            for mine, truth in zip(found, exact["results"], strict=True):
                assert_close(mine, truth, f"{name}, {tier}", slack=1e-12)
            for key, truth in exact["state"].items():
                assert_close(module.state_dict()[key], truth, key)


@pytest.mark.parametrize(
    ("name", "tier"),
    [
        pytest.param(name, tier, marks=slow_unless(i % len(TIERS) == j))
        for i, name in enumerate(WRITERS)
        for j, tier in enumerate(TIERS)
    ],
)
def test_a_launch_that_stops_half_way(fail_at_program, name, tier):
    """In any launch of forward and backward: a program has arrived at its counter, the others never
    will. The counters are forgotten, the next call is right."""
    arm, disarm = fail_at_program
    x, dy = make_input((2, 9, 4, 5)), make_input((2, 9, 4, 5), seed=8)
    module = getattr(fastnorm, name)(9, affine=True, device=DEVICE, dtype=torch.float64)
    with running("cpu"):
        exact = train(module, x, dy)
    with tiers.force(tier):
        before = snapshot(module)
        with running("triton") as forward:
            module(x)
        with running("triton") as launched:
            train(module, x, dy)
        for nth in range(1, len(launched) + 1):
            module.load_state_dict(before)
            arm(nth, 1)
            with running("triton"), pytest.raises(KeyboardInterrupt):
                train(module, x, dy)
            disarm()
            assert not tickets_left(), nth
            if nth <= len(forward):
                assert_unchanged(module, before)
            with running("triton"):
                found = train(module, x, dy)
            for mine, truth in zip(found, exact, strict=True):
                assert_close(mine, truth, f"after launch {nth}", slack=1e-12)


@pytest.mark.parametrize("tier", TIERS)
def test_a_failed_backward_has_no_gradient_and_can_be_repeated(fail_at, monkeypatch, tier):
    module, x = make("BatchNorm2d"), make_input(SHAPE, requires_grad=True)
    with running("triton"), tiers.force(tier):
        y = module(x)
        before = snapshot(module)
        fail_at(1)
        with pytest.raises(LaunchError):
            y.sum().backward(retain_graph=True)
        assert x.grad is None and module.weight.grad is None
        monkeypatch.undo()
        y.pow(2).sum().backward()
    assert_unchanged(module, before)
    assert_close(module.bias.grad, 2 * y.detach().sum((0, 2, 3)), slack=1e-12)


class Failing(torch.nn.Module):
    def forward(self, x):
        raise LaunchError("a layer after the norm")


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_exception_in_the_model_leaves_the_norm_usable(backend):
    """It was called: its statistics have seen the batch once, and will see the next."""
    model = torch.nn.Sequential(make("BatchNorm2d"), Failing())
    x, mean, var = make_input(SHAPE), torch.zeros(C).to(DEVICE), torch.ones(C).to(DEVICE)
    mean, var = mean.double(), var.double()
    with running(backend):
        for _ in range(2):
            TF.batch_norm(x, mean, var, training=True)
            with pytest.raises(LaunchError):
                model(x)
    assert model[0].num_batches_tracked == 2
    assert_close(model[0].running_mean, mean)
    assert_close(model[0].running_var, var)
