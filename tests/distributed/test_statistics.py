"""Statistics of a process group, with 2 and 4 ranks, against one process on the whole batch.

Each rank runs gloo_statistics.py; the truth is the unsynchronised norm by its formula.
"""

import pytest
import torch

import fastnorm
from tests.conftest import assert_close, slow_unless
from tests.distributed import gloo_statistics
from tests.distributed.processes import run_ranks


def whole(count, sizes):
    """The steps' inputs of all ranks, one behind the other."""
    each = [gloo_statistics.steps_of(rank, sizes) for rank in range(count)]
    return [
        [torch.cat([rank[seed][step] for rank in each]) for step in range(gloo_statistics.STEPS)]
        for seed in range(3)
    ]


@pytest.mark.parametrize(
    "count", [pytest.param(n, marks=slow_unless(n == 2)) for n in gloo_statistics.BACKENDS]
)
def test_ranks_compute_what_one_process_does(count, tmp_path):
    """One test for all that a group of processes wrote: starting them is what takes time."""
    ranks = run_ranks("tests.distributed.gloo_statistics", count, tmp_path)
    for backend in gloo_statistics.BACKENDS[count]:
        for name in gloo_statistics.NORMS:
            for sizes in gloo_statistics.SIZES:
                found = [rank[backend, name, sizes] for rank in ranks]
                check_training(found, name, sizes, f"{backend}, {name}, {sizes}")
        check_second_derivatives([rank[backend, "penalty"] for rank in ranks], backend)
        check_evaluation([rank[backend, "eval"] for rank in ranks], backend)


def check_training(found, name, sizes, what):
    """Outputs, gradients of inputs and parameters, running statistics; one all-reduce of 2 C + 1
    numbers forward and one of 2 C backward."""
    with fastnorm.use_backend("reference"):
        truth = gloo_statistics.train(gloo_statistics.build(name), *whole(len(found), sizes))
    for step, exact in enumerate(truth["steps"]):
        mine = [rank["steps"][step] for rank in found]
        for i, right in enumerate(exact):
            parts = [results[i] for results in mine]
            joined = torch.cat(parts) if i < 3 else sum(parts)  # y, dx, dresidual; parameters
            assert_close(joined, right, f"{what}, step {step}, result {i}", slack=1e-12)
    for rank in found:
        channels = gloo_statistics.C
        assert rank["reductions"] == [2 * channels + 1, 2 * channels] * gloo_statistics.STEPS, what
        for key, right in truth["buffers"].items():
            assert_close(rank["buffers"][key], right, f"{what}, {key}")


def check_second_derivatives(found, what):
    """Of batch-instance norm, unequal batches."""
    x = torch.cat([gloo_statistics.batch(rank, 0, "unequal") for rank in range(len(found))])
    with fastnorm.use_backend("reference"):
        exact = gloo_statistics.penalty(gloo_statistics.build("bin"), x)
    assert_close(torch.cat(found), exact, what, slack=1e-11 * exact.abs().max().item())


def check_evaluation(found, what):
    """Each process's own."""
    x = torch.cat([gloo_statistics.batch(rank, 0, "unequal") for rank in range(len(found))])
    with torch.no_grad(), fastnorm.use_backend("reference"):
        norm = gloo_statistics.build("bin")
        norm(x)  # the training step before
        norm.eval()
        for rank, y in enumerate(found):
            exact = norm(gloo_statistics.batch(rank, 0, "unequal"))
            assert_close(y, exact, f"{what}, rank {rank}", slack=1e-12)
