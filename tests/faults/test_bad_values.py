"""NaN and Inf: they spoil the same results as in torch, and not the next batch."""

import pytest
import torch
import torch.nn.functional as TF

from tests.conftest import assert_close, make_input, running
from tests.faults.modules import SHAPE, WRITERS, each_backend_and_tier, forced, make


def torchs_training_call(name, x, mean, var):
    """torch's output and updated statistics; batch-instance norm's by its parts, rho being 0.5."""
    if name == "InstanceNorm2d":
        return TF.instance_norm(x, mean, var)
    y = TF.batch_norm(x, mean, var, training=True)
    return y if name == "BatchNorm2d" else 0.5 * y + 0.5 * TF.instance_norm(x)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("name", WRITERS)
@each_backend_and_tier
def test_a_bad_value_stays_in_its_channel(backend, tier, name, bad):
    """Statistics and outputs are finite where torch's are, and there they are right; the next batch
    is normalised as if nothing had been."""
    module = make(name)
    if "rho" in module.state_dict():
        module.rho.data.fill_(0.5)
    x = make_input(SHAPE)
    x[1, 2, 0, 3] = bad
    mean, var = module.running_mean.clone(), module.running_var.clone()
    with running(backend), forced(tier):
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
