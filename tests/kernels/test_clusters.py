"""A barrier among programs ends only if all of them run at once: the launch makes sure of that.

A cluster kernel's grid follows from the device and from the compiled kernel's needs. Here both are
made up, so that clusters fit or do not. The kernels themselves are executed by ../compiled.
"""

import contextlib
from types import SimpleNamespace

import pytest
import torch

import fastnorm.functional as F
from fastnorm import kernels
from fastnorm.kernels import channels_cluster, clusters, launch, occupancy, tiers, tilings
from fastnorm.kernels.geometry import Sets, View
from tests.conftest import DEVICE, assert_close, make_input, running, slow_unless
from tests.kernels.tilings import fresh_plans
from tests.norms import forward_backward, make_params

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="a GPU cannot be made up on a GPU")

SHAPES = {"bn_train": (3, 2, 100, 100), "gn": (1, 4, 200, 200)}
CHANNELS = ["moments_kernel", "apply_kernel", "gradient_sums_kernel", "apply_backward_kernel"]
REFUSED = "Triton Error [CUDA]: too many blocks in cooperative launch"


@pytest.fixture
def gpu(monkeypatch):
    """A GPU and its compiled kernels, as far as a cluster's launch asks; change it at will."""
    made_up = SimpleNamespace(
        major=9, minor=0, multi_processor_count=132, registers=128, shared=0, compiled=0
    )
    handle = SimpleNamespace(metadata=made_up)

    def compiled(self, tensors, floats):
        made_up.compiled += 1
        handle.n_regs = made_up.registers
        return handle

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: made_up)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    assert kernels.INTERPRETED  # read now: fastnorm goes on giving them CPU tensors
    monkeypatch.setattr(launch, "INTERPRETED", False)
    monkeypatch.setattr(launch.Launch, "compile", compiled)
    with fresh_plans():
        yield made_up


@pytest.fixture
def cooperative_launches(monkeypatch):
    """Those that are asked of the driver, which refuses them all; others are interpreted."""
    refused, run = [], launch.Launch.__call__

    def call(self, tensors, floats=()):
        if self.options["launch_cooperative_grid"]:
            refused.append(self.name)
            raise RuntimeError(REFUSED)
        return run(self, tensors, floats)

    monkeypatch.setattr(launch.Launch, "__call__", call)
    return refused


def results(norm):
    """y, gradients and statistics of a training call with clusters allowed, and what launched."""
    shape = SHAPES[norm]
    x, dy = make_input(shape, mean=2.0, requires_grad=True), make_input(shape, seed=8)
    p = make_params(norm, shape, requires_grad=True)
    with tiers.cooperative(True), running("triton") as launched:
        found = forward_backward(F, norm, x, p, dy)
    statistics = {k: p[k] for k in ("running_mean", "running_var") if p[k] is not None}
    p = make_params(norm, shape, requires_grad=True)
    with running("reference"):
        exact = forward_backward(F, norm, x, p, dy)
    exact |= {k: p[k] for k in statistics}
    for name, value in (found | statistics).items():
        assert_close(value, exact[name], name, slack=1e-11)
    return launched


@pytest.mark.parametrize(
    "norm", [pytest.param(n, marks=slow_unless(i == 0)) for i, n in enumerate(SHAPES)]
)
def test_a_launch_that_the_driver_refuses_is_streamed(gpu, cooperative_launches, norm):
    """As where a process has a part of a GPU (MPS, green contexts): forward and backward, once."""
    assert results(norm) == CHANNELS
    assert len(cooperative_launches) == 2, "of the forward and of the backward"
    assert results(norm) == CHANNELS
    assert len(cooperative_launches) == 2, "no second time"


def test_other_errors_of_a_launch_are_not_taken_for_that(gpu, monkeypatch):
    def fail(self, tensors, floats=()):
        raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")

    monkeypatch.setattr(launch.Launch, "__call__", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        results("bn_train")


REFUSALS = {
    "too few multiprocessors": {"multi_processor_count": 1, "shared": 200 * 1024},
    "a kernel larger than a multiprocessor": {"shared": 300 * 1024},
    "an unknown GPU": {"major": 7},
}


@pytest.mark.parametrize("why", REFUSALS)
def test_a_cluster_that_does_not_fit_is_not_launched(gpu, cooperative_launches, why):
    vars(gpu).update(REFUSALS[why])
    each = cluster_of(units=5, members=3, num_warps=8)
    assert each.clusters((on_gpu(),), ()) == 0
    assert each((on_gpu(),)) is False
    assert not cooperative_launches


def a_kernel(x_ptr):
    pass


def cluster_of(units, members, num_warps):
    shape = SimpleNamespace(
        units=units, members=members, num_warps=num_warps, scalars=lambda: (), constants=dict
    )
    return clusters.ClusterLaunch(SimpleNamespace(fn=a_kernel), shape, {})


def on_gpu(address=4096):
    return SimpleNamespace(
        is_cuda=True, device="cuda:0", get_device=lambda: 0, data_ptr=lambda: address
    )


@pytest.mark.parametrize("multiprocessors", [1, 2, 7, 132])
@pytest.mark.parametrize("registers", [64, 128, 255])
def test_a_grid_is_never_larger_than_what_runs_at_once(gpu, multiprocessors, registers):
    """And as large as that: one cluster more would be too many, or there is none left to run."""
    gpu.multi_processor_count, gpu.registers = multiprocessors, registers
    for members in (1, 2, 3, 17, 264):
        for units in (1, 5, 5000):
            for num_warps in (4, 8):
                cluster = cluster_of(units, members, num_warps)
                count = cluster.clusters((on_gpu(),), ())
                on_one = occupancy.occupancy(90, registers, 0, num_warps).blocks
                at_once = multiprocessors * on_one
                assert count * members <= at_once
                full = (count + 1) * members > at_once
                assert full or count == min(units, clusters.MOST_CLUSTERS)
                _, launched = cluster._launches[0]
                assert (launched is None) == (count == 0)
                if launched is not None:  # cooperative, or the driver would start a part of it
                    assert launched.programs == count * members
                    assert launched.options["launch_cooperative_grid"]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("batch", [True, False])
def test_batch_sizes_share_a_kernel(gpu, batch, backward):
    """From 16 instances on: fewer may need wider rows."""
    for S in (256, 3136, 50176):
        constants = []
        for N in (16, 17, 100, 512):
            view = View(N, 64, S, False, 2)
            found = tilings.cluster(view, Sets(1, batch, False), False, backward)
            constants += [found.constants()] if found is not None else []
        assert batch or S < 50176 or constants
        assert all(each == constants[0] for each in constants)


def test_sets_that_a_cluster_does_not_serve(gpu):
    """Each alone is enough: large sets without it are served."""
    view, sets = View(64, 64, 50176, False, 2), Sets(1, False, False)
    assert tilings.cluster(view, sets, False, False) is not None
    others = {
        "channels last": (view._replace(channels_last=True), sets),
        "elements one by one": (view._replace(S=50177), sets),
        "half empty members": (view._replace(S=4096), sets),
        "too many members": (view._replace(S=264 * 16 * 1024 + 8), sets),
        "a mixture": (view, sets._replace(batch=True, mix=True)),
        "parameters of samples": (view, sets._replace(samples=True)),
    }
    for what, (other, its) in others.items():
        assert tilings.cluster(other, its, False, False) is None, what
    assert tilings.cluster(view, sets, True, False) is None, "a residual"
    assert channels_cluster.PADDED_MEMBERS.value >= tilings.MOST_MEMBERS


def test_tensors_of_another_alignment_have_no_cluster(gpu):
    """Their kernel would be another, of which it is not known how many fit."""
    each = cluster_of(5, 3, 4)
    assert each.clusters((on_gpu(), None, on_gpu(4104)), ()) == 0
    assert not gpu.compiled, "nothing was compiled for it"
    assert each.clusters((on_gpu(), None, on_gpu()), ()) == 5
    assert each.clusters((on_gpu(), None, on_gpu(4104)), ()) == 0
