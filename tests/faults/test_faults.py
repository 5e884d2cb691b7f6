"""Faults: bad batches, launches that fail, threads, forks. Nothing corrupted, nothing hangs."""

import contextlib
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as TF

import fastnorm
import fastnorm.functional as F
from fastnorm.kernels import channels, geometry, launch, tiers
from tests.conftest import BACKENDS, DEVICE, assert_close, make_input, running

ROOT = Path(__file__).parents[2]
C = 4
SHAPE = (3, C, 3, 5)
WRITERS = ("BatchNorm2d", "InstanceNorm2d", "BatchInstanceNorm2d")  # of running statistics
PLANS = (channels.forward_plan, channels.backward_plan)


def make(name, **kwargs):
    return getattr(fastnorm, name)(
        C, track_running_stats=True, device=DEVICE, dtype=torch.float64, **kwargs
    )


def snapshot(module):
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def assert_unchanged(module, before):
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[key]), key


# --- NaN and Inf ---


def torchs_training_call(name, x, mean, var):
    """torch's output and updated statistics; batch-instance norm's by its parts, rho being 0.5."""
    if name == "InstanceNorm2d":
        return TF.instance_norm(x, mean, var)
    y = TF.batch_norm(x, mean, var, training=True)
    return y if name == "BatchNorm2d" else 0.5 * y + 0.5 * TF.instance_norm(x)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("tier", ["any", "streaming"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bad_value_stays_in_its_channel(backend, tier, name, bad):
    """Statistics and outputs are finite where torch's are, and there they are right; the next batch
    is normalised as if nothing had been."""
    if tier != "any" and backend != "triton":
        return  # the others have no tiers
    module = make(name)
    if "rho" in module.state_dict():
        module.rho.data.fill_(0.5)
    x = make_input(SHAPE)
    x[1, 2, 0, 3] = bad
    mean, var = module.running_mean.clone(), module.running_var.clone()
    with running(backend), tiers.force(tier) if tier != "any" else fastnorm.use_backend(backend):
        y = module(x)
        clean = module(make_input(SHAPE, seed=1))
    theirs = torchs_training_call(name, x, mean, var)
    expected = torchs_training_call(name, make_input(SHAPE, seed=1), mean, var)
    for found, exact in ((y, theirs), (module.running_mean, mean), (module.running_var, var)):
        finite = exact.isfinite()
        assert torch.equal(found.isfinite(), finite) and not finite.all()
        assert_close(found[finite], exact[finite])
    assert_close(clean, expected)
    assert module.num_batches_tracked == (0 if name == "InstanceNorm2d" else 2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bad_value_stays_in_its_group_and_row(backend, bad):
    x = make_input(SHAPE)
    x[1, 2, 0, 3] = bad
    with running(backend):
        pairs = [
            (F.group_norm(x, 2), TF.group_norm(x, 2)),
            (F.layer_norm(x, (5,)), TF.layer_norm(x, (5,))),
        ]
    for found, exact in pairs:
        assert torch.equal(found.isfinite(), exact.isfinite()) and not exact.isfinite().all()
        assert_close(found[exact.isfinite()], exact[exact.isfinite()])


# --- launches that fail ---


class LaunchError(Exception):
    pass


@pytest.fixture
def fail_at(monkeypatch):
    """fail_at(n): the nth launch from now on raises before any of its programs runs."""
    original = launch.Launch.__call__

    def arm(n):
        left = [n]

        def call(self, *args):
            left[0] -= 1
            if left[0] == 0:
                raise LaunchError(self.name)
            original(self, *args)

        monkeypatch.setattr(launch.Launch, "__call__", call)

    return arm


@pytest.fixture
def fail_at_program(monkeypatch):
    """arm(n, i), disarm(): of the nth launch from now on the programs before i run, i raises."""
    if not launch.INTERPRETED:
        pytest.skip("only the interpreter stops between two programs")
    monkeypatch.setattr(geometry, "INTERPRETER_TILE", 128)  # several programs in every launch
    for plan in PLANS:
        plan.cache_clear()
    from triton.runtime.interpreter import interpreter_builder

    original = interpreter_builder.set_grid_idx

    def arm(n, program):
        left = [n]

        def set_grid_idx(x, y, z):
            left[0] -= x == 0
            if left[0] == 0 and x == program:
                raise KeyboardInterrupt
            original(x, y, z)

        monkeypatch.setattr(interpreter_builder, "set_grid_idx", set_grid_idx)

    def disarm():
        monkeypatch.setattr(interpreter_builder, "set_grid_idx", original)

    yield arm, disarm
    for plan in PLANS:
        plan.cache_clear()


def tickets_left():
    """Whether a counter of programs is not back at 0 (a barrier's need not be)."""
    return any(counter.any() for key, counter in launch._counters.items() if key[0] == "tickets")


def train(module, x, dy):
    """y and every gradient of one training call."""
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    gradients = torch.autograd.grad(y, [leaf, *module.parameters()], dy)
    return y.detach(), *gradients


def test_a_failed_launch_has_changed_nothing(fail_at, monkeypatch):
    """The first, and after it the second, in the forward of every norm and tier; the next call is
    right and counts as the first."""
    x, dy = make_input(SHAPE), make_input(SHAPE, seed=8)
    for name in WRITERS:
        for tier in tiers.TIERS:
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
                assert_close(module.state_dict()[key].double(), truth.double(), key)


def train_by_reference(name, x, dy):
    module = make(name, affine=True, activation="relu")
    with running("reference"):
        return {"results": train(module, x, dy), "state": module.state_dict()}


@pytest.mark.parametrize("tier", ["one_program", "streaming"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_launch_that_stops_half_way(fail_at_program, name, tier):
    """In any launch of forward and backward: a program has arrived at its counter, the others never
    will. The counters are forgotten, the next call is right."""
    arm, disarm = fail_at_program
    x, dy = make_input((2, 9, 4, 5)), make_input((2, 9, 4, 5), seed=8)
    module = getattr(fastnorm, name)(9, affine=True, device=DEVICE, dtype=torch.float64)
    with running("aten"):
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


@pytest.mark.parametrize("tier", tiers.TIERS)
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


# --- threads ---

CALLS, WORKERS, MOMENTUM = 12, 4, 0.1


@pytest.fixture
def eager_threads():
    """Threads take turns as often as between two launches."""
    former = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(former)


@pytest.mark.parametrize("tier", ["any", "streaming"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_that_share_a_module(eager_threads, backend, tier):
    """Outputs and gradients are each call's own, in training and evaluation.

    Of running statistics torch promises nothing here: its update reads, then writes, and of two at
    once one may be lost. All batches being one and the same, the statistics still lie between those
    of one update and the batch's. (aten scales, then adds: threads between the two overshoot.)
    """
    if tier != "any" and backend != "triton":
        return
    training, evaluating = make("BatchNorm2d", momentum=MOMENTUM), make("BatchNorm2d").eval()
    x, dy = make_input(SHAPE, mean=5.0, std=3.0), make_input(SHAPE, seed=8)
    with running("reference"):
        serial = make("BatchNorm2d", momentum=MOMENTUM)
        exact = train(serial, x, dy), train(make("BatchNorm2d").eval(), x, dy)
        for _ in range(CALLS - 1):
            serial(x)

    def call(i):
        return train(training, x, dy), train(evaluating, x, dy)

    choice = tiers.force(tier) if tier != "any" else fastnorm.use_backend(backend)
    with running(backend), choice, ThreadPoolExecutor(WORKERS) as pool:
        results = list(pool.map(call, range(CALLS)))
    for found in results:
        for mine, truth in zip(found, exact, strict=True):
            for tensor, expected in zip(mine, truth, strict=True):
                assert_close(tensor, expected, slack=1e-12)
    assert 1 <= training.num_batches_tracked <= CALLS
    most = WORKERS * MOMENTUM / (1 - (1 - MOMENTUM) ** WORKERS) if backend == "aten" else 1.0
    pairs = ((training.running_mean, 0.0, x.mean((0, 2, 3))),
             (training.running_var, 1.0, x.var((0, 2, 3))))  # fmt: skip
    for found, start, batch in pairs:
        once = start + MOMENTUM * (batch - start)
        assert (found > once - 1e-9).all() and (found < most * batch + 1e-9).all(), (found, batch)
    if backend == "triton" and DEVICE == "cpu":  # one launch at a time: a serial order
        assert_close(training.running_mean, serial.running_mean)
        assert_close(training.running_var, serial.running_var)


def test_a_thread_whose_launch_fails_disturbs_no_other(eager_threads, fail_at_program):
    """The failure forgets all counters, also those that other threads are about to use."""
    x = make_input((2, 4, 4, 5))
    expected = TF.group_norm(x, 2)

    def call(i):
        try:
            return F.group_norm(x, 2)
        except KeyboardInterrupt:
            return None

    fail_at_program[0](3, 1)
    with running("triton"), tiers.force("streaming"), ThreadPoolExecutor(WORKERS) as pool:
        results = list(pool.map(call, range(8)))
    assert sum(y is None for y in results) == 1
    for y in results:
        if y is not None:
            assert_close(y, expected)


# --- forks ---

WORKER = """
import threading, torch, fastnorm
from torch.utils.data import DataLoader, Dataset

torch.set_num_threads(2)
norm = fastnorm.BatchNorm2d(4)
x = torch.arange(240.0).reshape(3, 4, 4, 5).sin()

class Normalised(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        leaf = (x + i).requires_grad_()
        y = norm(leaf)
        y.square().sum().backward()
        return y.detach()

for backend in ("triton", "aten"):
    fastnorm.set_backend(backend)
    expected = norm(x).detach()
    done = threading.Event()

    def use():
        while not done.is_set():
            norm(x)

    thread = threading.Thread(target=use, daemon=True)
    thread.start()  # so that the fork finds a launch in progress
    loader = DataLoader(
        Normalised(), batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=60
    )
    for _ in range(3):
        for y in loader:
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    done.set()
    thread.join()
    print(backend)
"""


def test_a_forked_worker_normalises(tmp_path):
    """While a thread of the parent is in the middle of a launch: no hang, right values."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    process = subprocess.Popen(
        [sys.executable, str(script)], cwd=ROOT, env=environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        printed, errors = process.communicate(timeout=150)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a worker that hangs too
    assert process.returncode == 0, errors[-3000:]
    assert printed.split() == ["triton", "aten"]
