"""Threads that share a module, and forks of a process that uses one: no corruption, no hang."""

import contextlib
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch.nn.functional as TF

import fastnorm.functional as F
from fastnorm.kernels import tiers
from tests.conftest import DEVICE, assert_close, make_input, running
from tests.faults.modules import (
    SHAPE,
    each_backend_and_tier,
    forced,
    make,
    train,
)

ROOT = Path(__file__).parents[2]
CALLS, WORKERS, MOMENTUM = 12, 4, 0.1


@pytest.fixture
def eager_threads():
    """Threads take turns as often as between two launches."""
    former = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(former)


@each_backend_and_tier
def test_threads_that_share_a_module(eager_threads, backend, tier):
    """Outputs and gradients are each call's own, in training and evaluation.

    Of running statistics torch promises nothing here: its update reads, then writes, and of two at
    once one may be lost. All batches being one and the same, the statistics still lie between those
    of one update and the batch's.
    """
    training, evaluating = make("BatchNorm2d", momentum=MOMENTUM), make("BatchNorm2d").eval()
    x, dy = make_input(SHAPE, mean=5.0, std=3.0), make_input(SHAPE, seed=8)
    with running("reference"):
        serial = make("BatchNorm2d", momentum=MOMENTUM)
        exact = train(serial, x, dy), train(make("BatchNorm2d").eval(), x, dy)
        for _ in range(CALLS - 1):
            serial(x)

    def call(i):
        return train(training, x, dy), train(evaluating, x, dy)

    with running(backend), forced(tier), ThreadPoolExecutor(WORKERS) as pool:
        results = list(pool.map(call, range(CALLS)))
    for found in results:
        for mine, truth in zip(found, exact, strict=True):
            for tensor, expected in zip(mine, truth, strict=True):
                assert_close(tensor, expected, slack=1e-12)
    assert 1 <= training.num_batches_tracked <= CALLS
    pairs = ((training.running_mean, 0.0, x.mean((0, 2, 3))),
             (training.running_var, 1.0, x.var((0, 2, 3))))  # fmt: skip
    for found, start, batch in pairs:
        once = start + MOMENTUM * (batch - start)
        assert (found > once - 1e-9).all() and (found < batch + 1e-9).all(), (found, batch)
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

for backend in ("triton", "cpu"):
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
    assert printed.split() == ["triton", "cpu"]
