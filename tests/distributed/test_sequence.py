"""SequenceParallel, whose hook passes on only the first positional input: the residual stays."""

import torch

import fastnorm
from tests.conftest import assert_close
from tests.distributed import gloo_sequence
from tests.distributed.processes import run_ranks


def test_a_residual_beside_a_sharded_sequence(tmp_path):
    """However it is passed: what one process computes of the whole sequence."""
    ranks = run_ranks("tests.distributed.gloo_sequence", 2, tmp_path)
    for name, build in gloo_sequence.NORMS.items():
        for call, run in gloo_sequence.CALLS.items():
            x, residual = (t.requires_grad_() for t in gloo_sequence.inputs())
            with fastnorm.use_backend("reference"):
                y = run(build().double(), x, residual)
            wanted = [x, residual] if call != "none" else [x]
            truth = [y, *torch.autograd.grad(y.square().sum(), wanted)]
            for i, right in enumerate(truth):
                found = torch.cat([rank[name, call][i] for rank in ranks], gloo_sequence.SEQUENCE)
                assert_close(found, right, f"{name}, {call}, result {i}", slack=1e-12)
