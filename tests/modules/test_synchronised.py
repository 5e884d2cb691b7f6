"""Modules with a process group's statistics, and their converter: what one process can tell.

tests/distributed/ has what several compute.
"""

import copy

import pytest
import torch
from torch import nn

import fastnorm
from tests.conftest import DEVICE, assert_close, make_input, running

C = 4


# --- converting a model ---


def mixed_model():
    """Norms of both packages, nested, one without affine parameters and one without statistics."""
    torch.manual_seed(0)
    block = nn.Sequential(
        fastnorm.BatchNorm2d(C, activation="relu"),
        nn.BatchNorm2d(C, eps=1e-3, momentum=None),
        fastnorm.BatchInstanceNorm2d(C, activation="relu"),
    )
    return nn.Sequential(
        block,
        fastnorm.InstanceNorm2d(C, affine=True),
        fastnorm.GroupNorm(2, C),
        fastnorm.LayerNorm((C, 3, 2)),
        fastnorm.BatchNorm2d(C, affine=False, activation="gelu"),
        nn.BatchNorm2d(C, track_running_stats=False),
        fastnorm.BatchNorm2d(C, bias=False),
    ).to(DEVICE, torch.float64)


BATCH_NORMS = ("0.0", "0.1", "4", "5", "6")  # in mixed_model
MIXED = "0.2"
CONVERTERS = {
    "function": fastnorm.convert_sync_batchnorm,
    "method": fastnorm.SyncBatchNorm.convert_sync_batchnorm,
}


@pytest.mark.parametrize("how", CONVERTERS)
def test_conversion_of_a_mixed_model(how):
    """Batch norms of either package and batch-instance norms become ours with settings and
    tensors, the rest stays."""
    model, group = mixed_model().eval(), object()
    model[4].train()
    before, tensors = dict(model.named_modules()), dict(model.state_dict(keep_vars=True))
    converted = CONVERTERS[how](model, group)
    assert converted is model
    after = dict(model.named_modules())
    assert list(after) == list(before)
    for key, module in after.items():
        former = before[key]
        if key not in (*BATCH_NORMS, MIXED):
            assert module is former, key
            continue
        kind = fastnorm.SyncBatchInstanceNorm if key == MIXED else fastnorm.SyncBatchNorm
        assert type(module) is kind and module.process_group is group
        for setting in ("num_features", "eps", "momentum", "affine", "track_running_stats"):
            assert getattr(module, setting) == getattr(former, setting), (key, setting)
        assert module.activation == getattr(former, "activation", None)
        assert module.training == former.training
    assert all(value is tensors[key] for key, value in model.state_dict(keep_vars=True).items())
    assert list(model.state_dict()) == list(tensors)


def test_conversion_of_a_batch_norm_itself():
    norm = fastnorm.BatchNorm1d(C, activation="silu", device=DEVICE)
    norm.qconfig = "mine"
    converted = fastnorm.convert_sync_batchnorm(norm)
    assert converted is not norm and converted.activation == "silu"
    assert converted.weight is norm.weight and converted.running_var is norm.running_var
    assert converted.qconfig == "mine"
    again = fastnorm.convert_sync_batchnorm(converted)
    assert again.activation == "silu" and again.num_batches_tracked is norm.num_batches_tracked


def test_a_batch_norm_in_two_places_is_converted_in_both():
    """One that torch's converter overlooks: it visits each child of a container once."""
    norm = fastnorm.BatchNorm2d(C, device=DEVICE)
    model = fastnorm.convert_sync_batchnorm(nn.Sequential(norm, nn.ReLU(), norm))
    assert type(model[0]) is type(model[2]) is fastnorm.SyncBatchNorm
    assert model[0].weight is model[2].weight is norm.weight


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backend", ["triton", "aten"])
def test_a_converted_model_computes_the_same(backend, training):
    """Outside a process group: bit by bit, with its residuals, statistics and counts."""
    model = mixed_model().train(training)
    for tensor in model.parameters():
        tensor.data.uniform_(0.2, 1.0)
    twin = fastnorm.convert_sync_batchnorm(copy.deepcopy(model))
    x, residual = make_input((3, C, 3, 2)), make_input((3, C, 3, 2), seed=7)
    with running(backend):
        y, expected = twin(x), model(x)
        fused, separate = twin[0][0](x, residual), model[0][0](x, residual=residual)
    assert_close(y, expected, slack=1e-12)  # torch's own modules within are fastnorm's now
    assert torch.equal(fused, separate)
    for key, tensor in model.state_dict().items():
        assert_close(twin.state_dict()[key], tensor, key)


def test_what_torchs_converter_makes_of_our_norms():
    """Plain batch norms become torch's and compute the same; rho and the others stay."""
    model = mixed_model()
    before = dict(model.named_modules())
    for key in BATCH_NORMS:
        before[key].activation = None
    x = make_input((3, C, 3, 2))
    expected = copy.deepcopy(model)(x)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for key, module in converted.named_modules():
        if key in BATCH_NORMS:
            assert type(module) is nn.SyncBatchNorm
        else:
            assert module is before[key]
    assert "0.2.rho" in converted.state_dict()
    assert_close(converted(x), expected, slack=1e-12)


def test_torchs_converter_drops_the_activation():
    """A limit the README names: torch's knows nothing of it. Our converter is the way."""
    x = make_input((3, C, 3, 2))
    norm = fastnorm.BatchNorm2d(C, activation="relu", device=DEVICE, dtype=torch.float64)
    theirs = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(norm))
    ours = fastnorm.convert_sync_batchnorm(copy.deepcopy(norm))
    assert (theirs(x) < 0).any() and torch.equal(ours(x), norm(x))


# --- the module ---


def test_sync_batch_norm_is_a_batch_norm_like_torchs():
    """Not torch's own: DistributedDataParallel refuses any instance of that on CPUs."""
    theirs = nn.SyncBatchNorm(C, 1e-3, 0.2, process_group=None)
    ours = fastnorm.SyncBatchNorm(C, 1e-3, 0.2, process_group=None)
    assert isinstance(ours, nn.modules.batchnorm._BatchNorm) and repr(ours) == repr(theirs)
    assert not isinstance(ours, nn.SyncBatchNorm)
    assert "relu" in repr(fastnorm.SyncBatchNorm(C, activation="relu"))
    ours.load_state_dict(theirs.state_dict()), theirs.load_state_dict(ours.state_dict())
    for shape in ((C,), (2, C + 1)):
        for each in (ours, theirs):
            with pytest.raises((ValueError, RuntimeError)):
                each(torch.zeros(shape))
    with pytest.raises(ValueError, match="swoosh"):
        fastnorm.SyncBatchNorm(C, activation="swoosh")
