"""Synchronised norms under torch.compile, against one process on the whole batch, eagerly.

torch (2.13, 2.15) has two faults that once made them silently wrong. A compiled forward may read a
buffer and then overwrite it; the backward reads it again. Gradients show this if the statistics
have moved far: by a momentum of 1 from a mean of 3. And from the second norm on, inductor confused
the all-reduces of several norms.
"""

import itertools

import pytest
import torch

import fastnorm
from tests.conftest import assert_close
from tests.distributed import gloo_compiled
from tests.distributed.processes import run_ranks

RANKS = 2
QUICK = [
    ("cpu", "aot_eager", "bn", 3.0, 1.0, 1),
    ("cpu", "aot_eager", "sn", 3.0, None, 1),
]
MANY = [
    case
    for case in itertools.product(
        ("cpu", "triton"), ("eager", "aot_eager", "inductor"), gloo_compiled.NORMS,
        (0.0, 3.0), (0.1, 1.0, None), (1, 3),
    )
    if case[0] == "cpu" or case[3:] == (3.0, 1.0, 3)  # traced, both are the same formula
]  # fmt: skip
assert len(MANY) == 117


@pytest.mark.parametrize("cases", [QUICK, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.timeout(1500)
def test_compiled_ranks_compute_what_one_process_does(cases, tmp_path):
    torch.save(cases, tmp_path / "cases.pt")
    ranks = run_ranks("tests.distributed.gloo_compiled", RANKS, tmp_path, longest=1400)
    for case in cases:
        _, _, name, mean, momentum, depth = case
        model = gloo_compiled.build(name, momentum, depth)
        batches = [
            torch.cat([gloo_compiled.batch(rank, step, mean) for rank in range(RANKS)])
            for step in range(gloo_compiled.STEPS)
        ]
        with fastnorm.use_backend("reference"):
            truth = gloo_compiled.train(model, model, batches)
        parameters = len(list(model.parameters()))
        for step, exact in enumerate(truth):
            mine = [rank[case][step] for rank in ranks]
            for i, right in enumerate(exact):
                parts = [results[i] for results in mine]
                what = f"{case}, step {step}, result {i}"
                if i < 2:  # y, dx
                    assert_close(torch.cat(parts), right, what, slack=1e-10)
                elif i < 2 + parameters:
                    assert_close(sum(parts), right, what, slack=1e-10)
                else:  # buffers, which all ranks have alike
                    for part in parts:
                        assert_close(part, right, what, slack=1e-10)
