"""DTensors in two processes: the values of one process with the whole tensors.

One pair of gloo processes runs all cases (gloo_dtensor.py); the tests here judge its results.
"""

import pytest
from torch.distributed.tensor import Shard

import fastnorm
from tests.conftest import OLD_TORCH, assert_close
from tests.distributed import gloo_dtensor
from tests.distributed.processes import run_ranks

pytestmark = pytest.mark.skipif(
    OLD_TORCH, reason="DTensors of torch 2.11 have no rule for var_mean, which the formulas take"
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What each rank wrote."""
    return run_ranks(
        "tests.distributed.gloo_dtensor", gloo_dtensor.RANKS, tmp_path_factory.mktemp("dtensor")
    )


def alone(name, train):
    """The formulas on the whole tensors, in this process."""
    x, residual = (t.requires_grad_() for t in gloo_dtensor.inputs())
    with fastnorm.use_backend("reference"):
        return gloo_dtensor.run(gloo_dtensor.build(name, train), x, residual)


@pytest.mark.parametrize("case", gloo_dtensor.CASES, ids=str)
@pytest.mark.parametrize("backend", gloo_dtensor.BACKENDS)
def test_as_one_process(pair, backend, case):
    """Output, gradients and running statistics, whichever dimension is sharded."""
    name, _, train = case
    truth = alone(name, train)
    for rank, results in enumerate(pair):
        found = results[backend, *case]
        assert set(found) == {*truth, "placements"}
        for key, exact in truth.items():
            assert_close(found[key], exact, f"{key} of rank {rank}", slack=1e-11)


@pytest.mark.parametrize("backend", gloo_dtensor.BACKENDS)
def test_nothing_is_gathered_without_need(pair, backend):
    """Samples that know nothing of one another, rows, and channels stay where they are."""
    stays = [("in", "batch"), ("gn", "batch"), ("ln", "batch"), ("rms", "channels"),
             ("bn", "channels"), ("bin", "channels"), ("add_ln", "rows")]  # fmt: skip
    for name, placement in stays:
        found = pair[0][backend, name, placement, True]["placements"]
        assert found == repr((gloo_dtensor.PLACEMENTS[placement],)), (name, found)
    assert pair[0][backend, "bn", "batch", False]["placements"] == repr((Shard(0),))
    assert all(results[backend, "channels_last"] for results in pair)


@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize("backend", gloo_dtensor.BACKENDS)
def test_sequence_parallel(pair, backend, kind):
    for rank, results in enumerate(pair):
        found, torchs = results[backend, kind], results["torch", kind]
        assert set(found) == set(torchs)
        for key, expected in torchs.items():
            assert_close(found[key], expected, f"{key} of rank {rank}", slack=1e-11)


@pytest.mark.parametrize("backend", gloo_dtensor.BACKENDS)
def test_in_compiled_programs(pair, backend):
    assert pair[0][backend, "compiled"] <= 1e-12


@pytest.mark.parametrize("backend", gloo_dtensor.BACKENDS)
def test_a_plain_parameter_is_refused(pair, backend):
    assert "distribute" in pair[0][backend, "refused"]
