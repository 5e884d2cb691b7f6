"""A barrier among programs ends only if all of them run at once: what the launch makes sure of.

A cluster kernel's grid follows from the device and from what the compiled kernel needs; here both
are made up, so that clusters fit or do not. What runs is the interpreter, half by half.
"""

import contextlib
from types import SimpleNamespace

import pytest
import torch

import fastnorm.functional as F
from fastnorm.kernels import clusters, launch, occupancy, tiers
from tests.conftest import DEVICE, assert_close, make_input, running
from tests.kernels.tilings import fresh_plans
from tests.norms import forward_backward, make_params

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="a GPU cannot be made up on a GPU")

SHAPES = {"bn_train": (3, 2, 400, 500), "gn": (1, 4, 500, 600), "ln": (3, 20000), "rms": (3, 20000)}
ROWS = ["row_norm_kernel"] * 2 + ["row_norm_backward_kernel"] * 2 + ["sum_partials_kernel"]
CLUSTER = {
    "bn_train": ["resident_kernel"] * 2 + ["resident_backward_kernel"] * 2,
    "gn": ["resident_kernel"] * 2 + ["resident_backward_kernel"] * 2,
    "ln": ROWS,
    "rms": ROWS,
}
CHANNELS = ["moments_kernel", "apply_kernel", "gradient_sums_kernel", "apply_backward_kernel"]
ROWS_STREAMED = ["row_moments_kernel", "row_apply_kernel", "row_sums_kernel", "row_dx_kernel"]
STREAMING = {
    "bn_train": CHANNELS,
    "gn": CHANNELS,
    "ln": ROWS_STREAMED,
    "rms": ROWS_STREAMED,
}


@pytest.fixture
def gpu(monkeypatch):
    """A GPU and its compiled kernels, as far as a cluster's launch asks; change it at will."""
    made_up = SimpleNamespace(
        major=9, minor=0, multi_processor_count=132, registers=128, shared=0, plans=[]
    )
    handle = SimpleNamespace(metadata=made_up)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: made_up)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    original = clusters.ClusterLaunch._plan

    def compiled(self, tensors, floats):
        handle.n_regs = made_up.registers
        return handle

    def plan(self, x, tensors, floats):
        with monkeypatch.context() as compiling:
            compiling.setattr(launch, "INTERPRETED", False)
            compiling.setattr(launch.Launch, "compile", compiled)
            count, launches = original(self, on_gpu(), tensors, floats)
        made_up.plans.append((self.geometry, count, launches))
        return count, [self._launch(count, half) for half in (1, 2)] if count else []

    monkeypatch.setattr(clusters.ClusterLaunch, "_plan", plan)
    with fresh_plans():
        yield made_up


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


REFUSALS = {
    "too few multiprocessors": {"multi_processor_count": 1, "shared": 200 * 1024},
    "a kernel larger than a multiprocessor": {"shared": 300 * 1024},
    "an unknown GPU": {"major": 7},
}


@pytest.mark.parametrize("why", REFUSALS)
@pytest.mark.parametrize("norm", CLUSTER)
def test_a_cluster_that_does_not_fit_is_streamed(gpu, norm, why):
    """Forward and backward, of channels and rows: no cluster kernel runs, the results are right."""
    vars(gpu).update(REFUSALS[why])
    launched = results(norm)
    assert launched == STREAMING[norm]
    assert [count for _, count, _ in gpu.plans] == [0, 0], "of the forward and of the backward"


@pytest.mark.parametrize("norm", CLUSTER)
def test_a_cluster_that_fits_is_launched(gpu, norm):
    """The same calls on a whole GPU: what the refusals are compared with."""
    launched = results(norm)
    assert launched == CLUSTER[norm]
    assert [count > 0 for _, count, _ in gpu.plans] == [True, True]


def a_kernel(x_ptr):
    pass


def cluster_of(units, members, num_warps):
    shape = SimpleNamespace(
        units=units, members=members, num_warps=num_warps, scalars=lambda n: (), constants=dict
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
                found = cluster_of(units, members, num_warps).clusters((on_gpu(),), ())
                _, count, launches = gpu.plans[-1]
                on_one = occupancy.occupancy(90, registers, 0, num_warps).blocks
                at_once = multiprocessors * on_one
                assert found == count and count * members <= at_once
                full = (count + 1) * members > at_once
                assert full or count == min(units, clusters.MOST_CLUSTERS)
                assert [each.programs for each in launches] == [count * members] * bool(count)
                for each in launches:  # else the driver would start a part of the grid
                    assert each.options["launch_cooperative_grid"]


def test_tensors_of_another_alignment_have_no_cluster(gpu):
    """Their kernel would be another, of which it is not known how many fit."""
    each = cluster_of(5, 3, 4)
    assert each.clusters((on_gpu(), None, on_gpu(4104)), ()) == 0
    assert not gpu.plans, "nothing was compiled for it"
    assert each.clusters((on_gpu(), None, on_gpu()), ()) == 5
    assert each.clusters((on_gpu(), None, on_gpu(4104)), ()) == 0
