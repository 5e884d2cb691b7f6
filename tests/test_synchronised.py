"""Statistics of a process group: what one process computes of the whole batch, with 2 and 4 ranks.

tests/gloo_sync.py is what each rank runs; the truth is the unsynchronised norm by its formula.
"""

import pytest
import torch

import fastnorm
from tests import gloo_sync
from tests.conftest import assert_close
from tests.processes import run_ranks

RANKS = (2, 4)


@pytest.fixture(scope="module", params=RANKS)
def ranks(request, tmp_path_factory):
    """What each of 2 and of 4 ranks wrote."""
    return run_ranks("tests.gloo_sync", request.param, tmp_path_factory.mktemp("ranks"))


def whole(count, sizes):
    """The steps' inputs of all ranks, one behind the other."""
    each = [gloo_sync.steps_of(rank, sizes) for rank in range(count)]
    return [
        [torch.cat([rank[seed][step] for rank in each]) for step in range(gloo_sync.STEPS)]
        for seed in range(3)
    ]


@pytest.mark.parametrize("sizes", gloo_sync.SIZES)
@pytest.mark.parametrize("name", gloo_sync.NORMS)
def test_equals_one_process(ranks, name, sizes):
    """Outputs, gradients of inputs and parameters, running statistics; one all-reduce of 2 C + 1
    numbers forward and one backward."""
    with fastnorm.use_backend("reference"):
        truth = gloo_sync.train(gloo_sync.build(name), *whole(len(ranks), sizes))
    for backend in gloo_sync.BACKENDS:
        found = [rank[backend, name, sizes] for rank in ranks]
        for step, exact in enumerate(truth["steps"]):
            mine = [rank["steps"][step] for rank in found]
            for i, right in enumerate(exact):
                parts = [results[i] for results in mine]
                joined = torch.cat(parts) if i < 3 else sum(parts)  # y, dx, dresidual; parameters
                assert_close(joined, right, f"{backend}, step {step}, result {i}", slack=1e-12)
        for rank in found:
            assert rank["reductions"] == [2 * gloo_sync.C + 1] * 2 * gloo_sync.STEPS
            for key, right in truth["buffers"].items():
                if right.is_floating_point():
                    assert_close(rank["buffers"][key], right, f"{backend}, {key}")
                else:
                    assert torch.equal(rank["buffers"][key], right), key


def test_second_derivatives(ranks):
    """Of batch-instance norm, unequal batches."""
    x = torch.cat([gloo_sync.batch(rank, 0, "unequal") for rank in range(len(ranks))])
    with fastnorm.use_backend("reference"):
        exact = gloo_sync.penalty(gloo_sync.build("bin"), x)
    for backend in gloo_sync.BACKENDS:
        found = torch.cat([rank[backend, "penalty"] for rank in ranks])
        assert_close(found, exact, backend, slack=1e-11 * exact.abs().max().item())


def test_evaluation_is_each_processs_own(ranks):
    for backend in gloo_sync.BACKENDS:
        for rank, results in enumerate(ranks):
            norm = gloo_sync.build("bin")
            x = torch.cat([gloo_sync.batch(r, 0, "unequal") for r in range(len(ranks))])
            norm(x)  # the training step before
            with torch.no_grad(), fastnorm.use_backend("reference"):
                exact = norm.eval()(gloo_sync.batch(rank, 0, "unequal"))
            assert_close(results[backend, "eval"], exact, f"{backend}, rank {rank}", slack=1e-12)
