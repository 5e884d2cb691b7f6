"""Special to mean-only batch norm: its modules, one value a channel, its refusals.

Its values and gradients are compared with the truth together with all norms' (tests/norms.py).
"""

import copy
import pickle

import pytest
import torch
from torch import nn

import fastnorm
import fastnorm.functional as F
from tests.conftest import BACKENDS, DEVICE, assert_close, make_input, running
from tests.modules.cases import SHAPES, C


def module_of(d=2, **kwargs):
    kwargs = {"device": DEVICE, "dtype": torch.float64, **kwargs}
    return getattr(fastnorm, f"MeanOnlyBatchNorm{d}d")(C, **kwargs)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_running_mean_and_evaluation_equal_batch_norms(backend, d, momentum):
    """torch's batch norm keeps the same means; in eval mode they are subtracted."""
    ours = module_of(d, momentum=momentum)
    theirs = getattr(nn, f"BatchNorm{d}d")(C, momentum=momentum).to(DEVICE, torch.float64)
    with running(backend):
        for step in range(3):
            x = make_input(SHAPES[d], seed=step, mean=step)
            y, _ = ours(x), theirs(x)
            column = (1, C) + (1,) * d
            mean = x.transpose(0, 1).flatten(1).mean(1)
            assert_close(y, x - mean.view(column))
            assert_close(ours.running_mean, theirs.running_mean)
        assert ours.num_batches_tracked == 3
        before = copy.deepcopy(ours.state_dict())
        ours.eval()
        ours.bias.data.fill_(0.5)
        assert_close(ours(x), x - theirs.running_mean.view(column) + 0.5)
    assert torch.equal(ours.running_mean, before["running_mean"])
    assert ours.num_batches_tracked == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_running_mean_the_batchs_is_always_taken(backend):
    module, x = module_of(track_running_stats=False).eval(), make_input(SHAPES[2], mean=3.0)
    with running(backend):
        assert_close(module(x), x - x.mean((0, 2, 3), keepdim=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_value_is_its_own_mean(backend):
    """y is beta and x has no influence; batch norm would raise."""
    x = make_input((1, C, 1), requires_grad=True)
    bias = make_input((C,), seed=2, requires_grad=True)
    mean = torch.zeros(C, dtype=x.dtype, device=DEVICE)
    dy = make_input(x.shape, seed=8)
    with running(backend):
        y = F.mean_only_batch_norm(x, mean, bias, training=True, momentum=1.0)
        dx, dbias = torch.autograd.grad(y, [x, bias], dy)
    assert_close(y, bias.view(1, C, 1))
    assert_close(mean, x.flatten())
    assert_close(dx, torch.zeros_like(x))
    assert_close(dbias, dy.flatten())


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch_is_counted_and_changes_nothing(backend):
    module = module_of()
    with running(backend, launches=False):
        assert module(make_input((0, C, 2, 2))).shape == (0, C, 2, 2)
    assert module.num_batches_tracked == 1
    assert not module.running_mean.any()


def test_state():
    """bias, running_mean and num_batches_tracked; copies, pickles and resets as torch's modules."""
    module = module_of(activation="relu")
    with fastnorm.use_backend("cpu"):
        module(make_input(SHAPES[2], mean=2.0))
    assert list(module.state_dict()) == ["bias", "running_mean", "num_batches_tracked"]
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert all(torch.equal(v, twin.state_dict()[k]) for k, v in module.state_dict().items())
        assert twin.activation == "relu"
    module.bias.data.fill_(1.0)
    module.reset_parameters()
    assert not any(t.any() for t in module.state_dict().values())
    bare = module_of(bias=False, track_running_stats=False)
    bare.reset_parameters()
    assert not bare.state_dict()


def test_what_code_for_batch_norms_reads():
    """Initialisers that go by the class's name, filters of weight decay, printers of models."""
    module = module_of()
    assert (module.weight, module.eps, module.affine, module.running_var) == (
        None,
        None,
        False,
        None,
    )
    assert isinstance(module.bias, nn.Parameter)
    for layer in module.modules():  # as many repositories do
        if "BatchNorm" in type(layer).__name__:
            if layer.weight is not None:
                nn.init.ones_(layer.weight)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, 0.5)
    assert list(module.state_dict()) == ["bias", "running_mean", "num_batches_tracked"]


def test_repr():
    text = "MeanOnlyBatchNorm2d(4, momentum=0.1, bias=True, track_running_stats=True"
    assert repr(module_of()) == text + ")"
    assert repr(module_of(activation="relu")) == text + ", activation='relu')"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("error", "words", "arguments"),
    [
        (RuntimeError, "running_mean", {"running_mean": None}),
        (RuntimeError, "bias.*5.*4", {"bias": torch.ones(5)}),
        (RuntimeError, "running_mean.*5.*4", {"running_mean": torch.ones(5), "training": True}),
        (RuntimeError, "floating", {"bias": torch.ones(C, dtype=torch.int64)}),
        (RuntimeError, "dimensions", {"input": torch.ones(C)}),
        (NotImplementedError, "int64", {"input": torch.ones(SHAPES[1], dtype=torch.int64)}),
        (ValueError, "tanh", {"activation": "tanh"}),
        (RuntimeError, "residual", {"residual": torch.ones(1)}),
        (TypeError, "momentum", {"momentum": "0.1", "training": True}),
    ],
    ids=str,
)
def test_refusals(backend, error, words, arguments):
    mean = torch.zeros(C, device=DEVICE)
    given = {"input": torch.ones(SHAPES[1]), "running_mean": mean, **arguments}
    given = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    with running(backend, launches=False), pytest.raises(error, match=words):
        F.mean_only_batch_norm(**given)
    assert not mean.any()


def test_a_module_refuses_another_rank():
    with pytest.raises(ValueError, match="4D"):
        module_of(2)(make_input(SHAPES[1]))
