"""Models under torch's wrappers, DDP and FSDP, in two processes.

One pair of gloo processes runs all cases (gloo_wrappers.py); the tests here judge its results.
The truth is one process that plays both ranks with the formulas, without any wrapper.
"""

import pytest
import torch

import fastnorm
from tests.conftest import assert_close
from tests.distributed import gloo_wrappers
from tests.distributed.processes import run_ranks


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What each rank wrote."""
    return run_ranks(
        "tests.distributed.gloo_wrappers", gloo_wrappers.RANKS, tmp_path_factory.mktemp("pair")
    )


def play_both_ranks(projected):
    """In one process: each rank has its replica's buffers, gradients are averaged.

    Not `projected`, rho keeps what the steps made of it, and only the norm reads it projected.
    """
    replicas, raw = [gloo_wrappers.build() for _ in range(gloo_wrappers.RANKS)], []
    for step in range(gloo_wrappers.STEPS):
        for rank, model in enumerate(replicas):
            model.zero_grad()
            rho = dict(model.named_parameters())["5.rho"]
            raw.append(rho.detach().clone())
            gloo_wrappers.loss_of(model(gloo_wrappers.batch(rank, step))).backward()
            if not projected:
                rho.data.copy_(raw[-1])
        for together in zip(*(model.parameters() for model in replicas), strict=True):
            gradient = torch.stack([p.grad for p in together]).mean(0)
            for p in together:
                p.data -= gloo_wrappers.LEARNING_RATE * gradient
    with torch.no_grad():
        ys = [model.eval()(gloo_wrappers.batch(0, gloo_wrappers.STEPS)) for model in replicas]
    # Else the tests would say nothing of rho.
    assert min(map(torch.min, raw)) < 0 and max(map(torch.max, raw)) > 1, raw
    return [{"state": m.state_dict(), "y": y} for m, y in zip(replicas, ys, strict=True)]


@pytest.fixture(scope="module")
def alone():
    """The truth, by whether the parameter rho is projected between the steps."""
    with fastnorm.use_backend("reference"):
        return {projected: play_both_ranks(projected) for projected in (True, False)}


@pytest.mark.parametrize("wrapper", gloo_wrappers.WRAPPERS)
@pytest.mark.parametrize("backend", gloo_wrappers.BACKENDS)
def test_wrapped_models_train_as_one_process_does(pair, alone, backend, wrapper):
    """Parameters on both ranks; statistics and the evaluation that uses them too, but with DDP,
    which hands the first rank's buffers to the others.

    A flat parameter of FSDP1 hides rho: nobody can project it there.
    """
    names = dict(gloo_wrappers.build().named_parameters())
    for rank, results in enumerate(pair):
        found, truth = results[backend, wrapper], alone[wrapper != "fsdp1"][rank]
        own_buffers = rank == 0 or wrapper != "ddp"
        for key in truth["state"] if own_buffers else names:
            mine, exact = found["state"][key], truth["state"][key]
            assert_close(mine, exact, f"{key} of rank {rank}", slack=1e-11)
        if own_buffers:
            assert_close(found["y"], truth["y"], f"evaluation of rank {rank}", slack=1e-10)
